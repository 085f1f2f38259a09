"""Narrowing: which one item a chunk's workers die of, found in halves.

A lease that ends without a word counts a kill against its chunk. Once may be chance, so the
whole chunk is tried again; from the second kill on it is cut in halves, each a suspect that the
next kill cuts again, down to one item. That item is recorded as failed, all others succeed: at
most 2 + ⌈log₂ items⌉ kills. What the process of a worker survives, a fault that it does not know,
is narrowed by the same rule.
"""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.errors import ItemError
from app.ids import CHUNK, new_id
from app.jobs.claim import NARROW_AT, WAITS_AGAIN, Lease, claim_chunk, end_lease
from app.jobs.item_rows import ItemRow
from app.jobs.items import slice_items, unpack_items
from app.jobs.record import record_chunk
from app.jobs.states import ChunkState, ChunkTask, ItemState
from app.jobs.tables import Chunk
from app.points import reach

#: Who holds the lease under which the end of a poisonous item is recorded.
_SWEEPER = "wrk_sweeper"
#: Long enough for one transaction, which nobody sees before it has ended.
_LEASE_SECONDS = 60

_KILLED = ItemError(
    "every worker that took this item ended without an answer; the workers' logs say why",
    code="worker_killed",
)


class Narrowed(enum.Enum):
    """What narrowing did to a chunk."""

    #: It is two now.
    HALVED = enum.auto()
    #: Its last item is recorded as failed.
    ENDED = enum.auto()


def narrow_killed_chunk(session: Session, tenant_id: str, chunk_id: str) -> Narrowed | None:
    """Cut a waiting chunk that killed its workers again, or end its only item.

    None where there is nothing to do: not that often killed, claimed, or held by another
    sweeper; or its job is paused or told to stop, and then its last item is left as it is.
    """
    chunk = session.execute(
        select(Chunk.id, Chunk.lo, Chunk.hi, Chunk.task)
        .where(
            Chunk.id == chunk_id,
            Chunk.tenant_id == tenant_id,
            Chunk.state == ChunkState.PENDING,
            Chunk.kills >= NARROW_AT,
            Chunk.lo < Chunk.hi,
        )
        .with_for_update(skip_locked=True)
    ).first()
    if chunk is None:
        return None
    if chunk.hi - chunk.lo == 1:
        return _end_killed_item(session, tenant_id, chunk_id, ChunkTask(chunk.task))
    _halve(session, chunk_id, chunk.lo, chunk.hi, kills=NARROW_AT - 1, due_at=func.now())
    reach("narrow")
    return Narrowed.HALVED


def narrow_failing_chunk(
    session: Session, lease: Lease, error: dict[str, Any], *, delay_seconds: float
) -> Narrowed:
    """Cut a chunk whose work failed again under this lease, or end its only item with ``error``.

    Both halves are due after ``delay_seconds``.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    if lease.hi - lease.lo == 1:
        record_chunk(session, lease, [_failed(lease, error)])
        return Narrowed.ENDED
    end_lease(session, lease, ChunkState.PENDING, **WAITS_AGAIN)
    due_at = func.now() + timedelta(seconds=delay_seconds)
    _halve(session, lease.chunk_id, lease.lo, lease.hi, faults=NARROW_AT - 1, due_at=due_at)
    reach("narrow")
    return Narrowed.HALVED


def _end_killed_item(
    session: Session, tenant_id: str, chunk_id: str, task: ChunkTask
) -> Narrowed | None:
    """Record the item as failed, by the way of every other item: claimed, then recorded."""
    lease = claim_chunk(
        session,
        tenant_id,
        chunk_id,
        task=task,
        worker_id=_SWEEPER,
        lease_seconds=_LEASE_SECONDS,
        kills=None,
    )
    if lease is None:
        return None
    record_chunk(session, lease, [_failed(lease, _KILLED.as_dict())])
    reach("narrow")
    return Narrowed.ENDED


def _failed(lease: Lease, error: dict[str, Any]) -> ItemRow:
    """The row of a lease's only item that failed."""
    (item,) = unpack_items(lease.items or {})
    return ItemRow(
        ordinal=lease.lo,
        custom_id=item.custom_id,
        source=item.source,
        state=ItemState.FAILED,
        error=error,
        label=item.label,
        metadata=item.metadata,
    )


def _halve(
    session: Session,
    chunk_id: str,
    lo: int,
    hi: int,
    *,
    due_at: Any,
    kills: int = 0,
    faults: int = 0,
) -> None:
    """[lo, mid) stays this chunk, [mid, hi) becomes a new one; the caller holds the row."""
    chunk = session.execute(
        select(
            Chunk.tenant_id, Chunk.job_id, Chunk.task, Chunk.queue, Chunk.items, Chunk.first_item
        ).where(Chunk.id == chunk_id)
    ).one()
    middle = lo + (hi - lo + 1) // 2
    suspicion = {"kills": kills, "faults": faults, "due_at": due_at, "last_rung_at": None}
    cut = middle - chunk.first_item
    kept = moved = None
    if chunk.items is not None:
        # References of recorded items, before ``lo``, stay with the first half.
        kept = slice_items(chunk.items, 0, cut)
        moved = slice_items(chunk.items, cut, hi - chunk.first_item)
    session.execute(
        update(Chunk)
        .where(Chunk.id == chunk_id)
        .values(hi=middle, items=kept, **suspicion)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        insert(Chunk).values(
            id=new_id(CHUNK),
            tenant_id=chunk.tenant_id,
            job_id=chunk.job_id,
            task=chunk.task,
            queue=chunk.queue,
            state=ChunkState.PENDING,
            lo=middle,
            hi=hi,
            first_item=middle,
            items=moved,
            **suspicion,
        )
    )
