"""Which items of a closed job a retry takes, and where their references are.

The items of a retry stand in the order of those they try again, one for one: an export that
merges the two counts on it (:mod:`app.exports.merge`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.db.session import Database
from app.errors import InvalidInputError
from app.jobs.items import JobItem, unpack_items
from app.jobs.states import ChunkState, ChunkTask, ItemState
from app.jobs.tables import Chunk, Item, Job

#: Failed items, those that a stop left untouched, or both.
Which = Literal["failed", "unfinished", "all"]

#: An export reads so many jobs side by side at most.
MAX_MERGED_RETRIES = 50
#: Chunks looked at together, without their references.
_PAGE_CHUNKS = 200


def takes(which: str, state: str | None) -> bool:
    """Whether a retry takes an item that ended so; None is one that never ended."""
    if state is None:
        return which in ("unfinished", "all")
    return state == ItemState.FAILED and which in ("failed", "all")


def count_retried(job: Job, which: str) -> int:
    """How many items of a closed job a retry takes."""
    failed = job.failed if takes(which, ItemState.FAILED) else 0
    return failed + (job.cancelled + job.expired if takes(which, None) else 0)


class RetryLink(NamedTuple):
    """A retry, and the job that it tries again."""

    id: str
    retry_of: str
    which: str


def list_retries(session: Session, tenant_id: str, job_id: str) -> list[RetryLink]:
    """All retries of a job and of its retries, the newest first.

    Raises:
        InvalidInputError: ``too_many_retries``.
    """
    jobs = (
        select(Job.id, Job.retry_of, Job.input, Job.created_at)
        .where(Job.retry_of == job_id, Job.tenant_id == tenant_id)
        .cte("retries", recursive=True)
    )
    further = aliased(Job)
    jobs = jobs.union_all(
        select(further.id, further.retry_of, further.input, further.created_at).where(
            further.retry_of == jobs.c.id, further.tenant_id == tenant_id
        )
    )
    rows = session.execute(
        select(jobs)
        .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(MAX_MERGED_RETRIES + 1)
    ).all()
    if len(rows) > MAX_MERGED_RETRIES:
        raise InvalidInputError(
            f"job {job_id} was retried more than {MAX_MERGED_RETRIES} times; export the retries "
            "one by one",
            code="too_many_retries",
        )
    return [RetryLink(row.id, row.retry_of, row.input["which"]) for row in rows]


def read_retried(
    db: Database, tenant_id: str, job_id: str, which: str, *, start: int = 0
) -> Iterator[tuple[int, JobItem]]:
    """The items of a closed job that a retry takes, with their ordinals, from ``start`` on.

    One chunk's references are in memory at a time, and none are read of chunks that have
    nothing to retry.
    """
    conditions = [
        Chunk.job_id == job_id,
        Chunk.tenant_id == tenant_id,
        Chunk.task == ChunkTask.PREDICT,
        Chunk.hi > start,
    ]
    query = (
        select(Chunk.id, Chunk.state, Chunk.first_item, Chunk.lo, Chunk.hi)
        .order_by(Chunk.lo)
        .limit(_PAGE_CHUNKS)
    )
    after = -1
    while True:
        with db.tenant(tenant_id) as session:
            page = session.execute(query.where(*conditions, Chunk.lo > after)).all()
        for chunk in page:
            with db.tenant(tenant_id) as session:
                ordinals = _ordinals(session, tenant_id, job_id, which, chunk=chunk, start=start)
                packed = (
                    session.scalar(select(Chunk.items).where(Chunk.id == chunk.id))
                    if ordinals
                    else None
                )
            if packed is not None:
                items = unpack_items(packed)
                for ordinal in ordinals:
                    yield ordinal, items[ordinal - chunk.first_item]
            after = chunk.lo
        if len(page) < _PAGE_CHUNKS:
            return


def _ordinals(
    session: Session, tenant_id: str, job_id: str, which: str, *, chunk: Any, start: int
) -> Sequence[int]:
    """The ordinals of one chunk that are wanted, ascending.

    Its range begins at its first reference: what was recorded of it before may have failed.
    """
    first = max(chunk.first_item, start)
    rows = select(Item.ordinal).where(
        Item.job_id == job_id,
        Item.tenant_id == tenant_id,
        Item.ordinal >= first,
        Item.ordinal < chunk.hi,
    )
    wanted: set[int] = set()
    if takes(which, ItemState.FAILED):
        wanted.update(session.scalars(rows.where(Item.state == ItemState.FAILED)))
    # A chunk is done when each of its items is recorded.
    if takes(which, None) and chunk.state != ChunkState.DONE:
        wanted.update(set(range(first, chunk.hi)).difference(session.scalars(rows)))
    return sorted(wanted)
