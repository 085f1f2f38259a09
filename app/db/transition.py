"""The one function that writes a state column."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Row, func, update
from sqlalchemy.orm import InstrumentedAttribute, Session


class _Stateful(Protocol):
    state: Any


def transition(
    session: Session,
    table: type[_Stateful],
    to: enum.StrEnum,
    *,
    sources: Collection[enum.StrEnum],
    where: Sequence[ColumnElement[bool]],
    values: dict[str, Any] | None = None,
    returning: Sequence[InstrumentedAttribute[Any]] = (),
) -> Sequence[Row[Any]]:
    """Move the rows that match ``where`` and stand in one of ``sources`` to ``to``.

    One UPDATE, so a row that another moved first is left alone. ``values`` are further
    columns; ``<state>_at`` is set by the database's clock where the table has it. Returns the
    ``returning`` columns of the rows moved (their ids where none are named); no row means
    the move was not allowed any more.
    """
    changes: dict[str, Any] = {"state": to, **(values or {})}
    stamp = f"{to.value}_at"
    if hasattr(table, stamp):
        changes.setdefault(stamp, func.now())
    statement = (
        update(table)
        .where(*where, table.state.in_(list(sources)))
        .values(**changes)
        .returning(*(returning or (table.id,)))  # type: ignore[attr-defined]
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).all()
