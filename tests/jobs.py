"""Jobs that are planned already, and the moves of a worker without a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.leases import free_ended_leases
from app.ids import CHUNK, JOB, WORKER, new_id
from app.jobs.claim import Lease, claim_chunk, suspect_kills
from app.jobs.item_rows import ItemRow
from app.jobs.items import JobItem, pack_items
from app.jobs.progress import counts, get_job
from app.jobs.record import record_chunk
from app.jobs.states import ChunkState, ChunkTask, ItemState, JobKind, JobState
from app.jobs.tables import Chunk, Item, Job, WorkerRow
from app.queues.names import QUEUE_OF_TASK, Queue

T = TypeVar("T")

#: A beating worker extends a lease this often at most before it is seen as ended.
_LOSSES_TRIED = 100


def add_planned_job(
    session: Session, tenant_id: str, *sizes: int, priority: int = 0, kind: JobKind | None = None
) -> str:
    """The id of a queued predict job with chunks of so many items each."""
    total = sum(sizes)
    job = Job(
        id=new_id(JOB),
        tenant_id=tenant_id,
        kind=kind or JobKind.PREDICT,
        state=JobState.QUEUED,
        priority=priority,
        input={},
        options={},
        metadata_={},
        total=total,
        chunk_items=max(sizes, default=None),
        sealed_at=func.now(),
        queued_at=func.now(),
    )
    session.add(job)
    session.flush()
    lo = 0
    for size in sizes:
        add_chunk(session, job, ChunkTask.PREDICT, lo, lo + size)
        lo += size
    session.flush()
    return job.id


def add_chunk(session: Session, job: Job, task: ChunkTask, lo: int = 0, hi: int = 0) -> Chunk:
    """A waiting chunk of the job with items of its own making."""
    items = [
        JobItem(f"item {ordinal}", "photos", f"{ordinal}.png", f"s3://photos/{ordinal}.png")
        for ordinal in range(lo, hi)
    ]
    chunk = Chunk(
        id=new_id(CHUNK),
        tenant_id=job.tenant_id,
        job_id=job.id,
        task=task,
        queue=QUEUE_OF_TASK[task],
        state=ChunkState.PENDING,
        lo=lo,
        hi=hi,
        first_item=lo,
        items=pack_items(items) if items else None,
    )
    session.add(chunk)
    return chunk


def add_worker(session: Session, queue: Queue = Queue.INFERENCE, slots: int = 2) -> str:
    """The id of a worker that has just been seen."""
    worker = WorkerRow(
        id=new_id(WORKER),
        name=new_id(WORKER),
        host="here",
        pid=1,
        device="cpu",
        queue=queue,
        slots=slots,
        warm_versions=[],
    )
    session.add(worker)
    session.flush()
    return worker.id


def chunk_ids(db: Database, job_id: str) -> list[str]:
    """The job's chunks in the order of their items."""
    with db.system() as session:
        return list(
            session.scalars(select(Chunk.id).where(Chunk.job_id == job_id).order_by(Chunk.lo))
        )


def look_at_chunk(db: Database, chunk_id: str) -> Chunk:
    """The chunk's row now."""
    with db.system() as session:
        return session.scalars(select(Chunk).where(Chunk.id == chunk_id)).one()


def look_at_job(db: Database, tenant_id: str, job_id: str) -> Job:
    """The job's row now."""
    with db.tenant(tenant_id) as session:
        return get_job(session, tenant_id, job_id)


def try_claim(
    db: Database,
    tenant_id: str,
    chunk_id: str,
    *,
    task: ChunkTask = ChunkTask.PREDICT,
    worker_id: str = "wrk_test",
    lease_seconds: float = 30,
) -> Lease | None:
    """What a worker gets that answers a bell for this chunk, a suspect one included."""
    with db.tenant(tenant_id) as session:
        return claim_chunk(
            session,
            tenant_id,
            chunk_id,
            task=task,
            worker_id=worker_id,
            lease_seconds=lease_seconds,
            kills=suspect_kills(session, tenant_id, chunk_id),
        )


def claim(
    db: Database,
    tenant_id: str,
    chunk_id: str,
    *,
    task: ChunkTask = ChunkTask.PREDICT,
    worker_id: str = "wrk_test",
) -> Lease:
    """The lease of a chunk that can be claimed."""
    lease = try_claim(db, tenant_id, chunk_id, task=task, worker_id=worker_id)
    assert lease is not None
    return lease


def let_lease_end(db: Database, chunk_id: str) -> None:
    """Put the end of a lease into the past: the same as waiting for it."""
    with db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == chunk_id, Chunk.state == ChunkState.RUNNING)
            .values(lease_until=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1))
        )


def lose_worker(db: Database, chunk_id: str) -> None:
    """End a lease without a word and let the sweeper see it: one more kill."""
    attempt = look_at_chunk(db, chunk_id).attempt
    for _ in range(_LOSSES_TRIED):
        let_lease_end(db, chunk_id)
        free_ended_leases(db)
        row = look_at_chunk(db, chunk_id)
        # A worker that beats in this process may have extended the lease in between.
        if (row.state, row.attempt) != (ChunkState.RUNNING, attempt):
            return
    raise AssertionError("the lease was extended each time before the sweeper saw its end")


def rows_of(lease: Lease, count: int | None = None, failed: Sequence[int] = ()) -> list[ItemRow]:
    """Results of the lease's first ``count`` items; the ordinals in ``failed`` are errors."""
    hi = lease.hi if count is None else lease.lo + count
    return [
        ItemRow(ordinal, f"item {ordinal}", "s3://photos", ItemState.FAILED, error={"code": "x"})
        if ordinal in failed
        else ItemRow(
            ordinal,
            f"item {ordinal}",
            "s3://photos",
            ItemState.SUCCEEDED,
            prediction=[["cat", 0.75], ["dog", 0.25]],
        )
        for ordinal in range(lease.lo, hi)
    ]


def assert_closed(db: Database, tenant_id: str, job_id: str, state: JobState) -> Job:
    """The job has ended so, its counts sum to its total, and each counted item is one row."""
    job = look_at_job(db, tenant_id, job_id)
    assert job.state == state, (job.state, job.error)
    assert job.ended_at is not None
    numbers = counts(job)
    ended = numbers["done"] + numbers["cancelled"] + numbers["expired"]
    assert ended == numbers["total"], numbers
    with db.tenant(tenant_id) as session:
        rows = session.execute(
            select(Item.state, func.count().label("items"))
            .where(Item.job_id == job_id)
            .group_by(Item.state)
        ).all()
        still_open = session.scalars(
            select(Chunk.id).where(
                Chunk.job_id == job_id,
                Chunk.state.in_([ChunkState.PENDING, ChunkState.RUNNING]),
            )
        ).all()
    assert {row.state: row.items for row in rows} == {
        state.value: numbers[state] for state in ItemState if numbers[state]
    }
    assert not still_open
    return job


def make_job(db: Database, tenant_id: str, *sizes: int, **columns: Any) -> tuple[str, list[str]]:
    """A queued predict job with chunks of so many items each, and their ids."""
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, *sizes)
        if columns:
            session.execute(update(Job).where(Job.id == job_id).values(**columns))
    return job_id, chunk_ids(db, job_id)


def record_all(db: Database, lease: Lease, *failed: int) -> None:
    """A worker records every item of its lease; the ordinals in ``failed`` are errors."""
    with db.tenant(lease.tenant_id) as session:
        record_chunk(session, lease, rows_of(lease, failed=failed))


def finish(db: Database, tenant_id: str, chunk_id: str, *failed: int) -> None:
    """A worker claims the chunk and records all of it."""
    record_all(db, claim(db, tenant_id, chunk_id), *failed)


def make_due(db: Database, chunk_id: str) -> None:
    """Let the time until the chunk's next try pass."""
    with db.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk_id).values(due_at=func.now()))


def make_old(db: Database, table: type, column: str, hours: float, *ids: str) -> None:
    """Put a moment of these rows so far into the past: the same as waiting for it."""
    with db.system() as session:
        session.execute(
            update(table)
            .where(table.id.in_(ids))  # type: ignore[attr-defined]
            .values({column: func.now() - timedelta(hours=hours)})
        )


def failed_items(db: Database, job_id: str) -> list[Item]:
    """The job's failed items in their order."""
    with db.system() as session:
        return list(
            session.scalars(
                select(Item)
                .where(Item.job_id == job_id, Item.state == ItemState.FAILED)
                .order_by(Item.ordinal)
            )
        )


def at_once(*steps: Callable[[], T]) -> list[T | BaseException]:
    """Run the steps in threads that start together; what each returned or raised."""
    barrier = threading.Barrier(len(steps))

    def run(step: Callable[[], T]) -> T | BaseException:
        barrier.wait(10)
        try:
            return step()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(steps)) as threads:
        return list(threads.map(run, steps))
