"""One page of a list by keyset: never OFFSET, so page 1,000 costs what page 1 costs."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")


def fetch_page(
    session: Session,
    statement: Select[T],
    key: InstrumentedAttribute[str],
    *,
    after: str | None,
    limit: int,
) -> tuple[list[T], bool]:
    """At most ``limit`` rows, newest id first, and whether more follow.

    ``after`` is the last id of the page before.
    """
    if after is not None:
        statement = statement.where(key < after)
    rows = list(session.scalars(statement.order_by(key.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit
