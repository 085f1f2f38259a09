"""Reading results by keyset: a page is one index range, however deep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.errors import InvalidInputError
from app.jobs.states import TERMINAL_JOB_STATES, ItemState
from app.jobs.tables import Item, Job

Which = Literal["all", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Some results, and the cursor that continues after them."""

    items: Sequence[Item]
    #: Pass it back to read on; in an open job also once more results have come in.
    cursor: str | None
    has_more: bool


def page_results(
    session: Session,
    tenant_id: str,
    job: Job,
    *,
    cursor: str | None = None,
    limit: int = 100,
    only: Which = "all",
) -> ResultPage:
    """One page of a job's results.

    Of a closed job in the order of the input. Of an open one by (seq, ordinal), the order in
    which they were recorded, so that nothing that ends late is missed; a cursor taken there
    stays in that order after the job has closed.

    Raises:
        InvalidInputError: the cursor is not one of this job's.
    """
    by_seq, position = _read_cursor(cursor, ended=job.state in TERMINAL_JOB_STATES)
    query = select(Item).where(Item.job_id == job.id, Item.tenant_id == tenant_id)
    if only == "succeeded":
        query = query.where(Item.state == ItemState.SUCCEEDED)
    elif only == "failed":
        query = query.where(Item.state == ItemState.FAILED)
    if by_seq:
        query = query.order_by(Item.seq, Item.ordinal)
        if position:
            query = query.where(tuple_(Item.seq, Item.ordinal) > tuple_(*position))
    else:
        query = query.order_by(Item.ordinal)
        if position:
            query = query.where(Item.ordinal > position[0])
    rows = list(session.scalars(query.limit(limit + 1)))
    page = rows[:limit]
    if page:
        last = page[-1]
        cursor = f"s.{last.seq}.{last.ordinal}" if by_seq else f"o.{last.ordinal}"
    return ResultPage(page, cursor, len(rows) > limit)


def _read_cursor(cursor: str | None, *, ended: bool) -> tuple[bool, tuple[int, ...]]:
    """Whether to page by (seq, ordinal), and the position to continue after."""
    if cursor is None:
        return not ended, ()
    kind, *numbers = cursor.split(".")
    if (kind, len(numbers)) in (("s", 2), ("o", 1)) and all(
        number.isascii() and number.isdigit() and len(number) <= 18 for number in numbers
    ):
        return kind == "s", tuple(int(number) for number in numbers)
    raise InvalidInputError(
        "the cursor is not one that this list gave; start again without it", code="bad_cursor"
    )
