"""The one transaction in which work becomes result: chunk, items and job together.

Lock order is chunk before job, everywhere. The guarded update of the chunk comes first: where
another attempt owns it, nothing at all is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.session import RECORDS
from app.errors import InvalidInputError
from app.jobs.claim import WAITS_AGAIN, Lease, end_lease, fenced, holds
from app.jobs.events import EVENT_COLUMNS, PROGRESS, add_event, event_values
from app.jobs.finalize import (
    close_job,
    close_stopped_if_let_go,
    end_job,
    fail_job,
    lock_open_chunks,
    stopped_as,
)
from app.jobs.item_rows import INSERT_ITEMS, ItemRow, rows_as_json
from app.jobs.limits import exceeds_budget
from app.jobs.move import move_job
from app.jobs.source import describe_input
from app.jobs.speeds import ChunkSpeed
from app.jobs.states import ChunkState, ItemState, JobState, StopReason
from app.jobs.tables import Chunk, Job


def record_chunk(
    session: Session,
    lease: Lease,
    rows: Sequence[ItemRow] = (),
    *,
    result: dict[str, Any] | None = None,
    speed: ChunkSpeed | None = None,
    before_close: Callable[[Session], None] = lambda _: None,
) -> None:
    """Record a finished chunk; closes the job if this was the last.

    ``rows`` must hold every item of the chunk once; ``result`` is what a job without items
    made. ``speed`` stays with the chunk until its job ends. ``before_close`` runs in the same
    transaction, before the job may close; it holds the job's row.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    if lease.has_items and len(rows) != lease.hi - lease.lo:
        raise ValueError(f"{len(rows)} results for {lease.hi - lease.lo} items")
    measured = {} if speed is None else {"speed": asdict(speed)}
    end_lease(session, lease, ChunkState.DONE, **measured)
    job = _count(session, lease, rows, extra={"result": result} if result is not None else {})
    before_close(session)
    if job.state == JobState.CANCELLING:
        close_stopped_if_let_go(session, lease.tenant_id, lease.job_id)
    elif job.state == JobState.FINALIZING:
        # This was its closing work.
        end_job(session, lease.tenant_id, lease.job_id)
    elif job.sealed_at is not None and job.done == job.total:
        close_job(session, lease.tenant_id, lease.job_id)


def record_part(
    session: Session,
    lease: Lease,
    rows: Sequence[ItemRow] = (),
    *,
    cursor: dict[str, Any],
    added: int = 0,
    gained: bool = False,
    seal: bool = False,
    progress: dict[str, Any] | None = None,
    lease_seconds: float,
) -> None:
    """Record what a resumable chunk has done so far, and where it goes on after a loss.

    ``added`` items were found and join the job's total; ``seal`` says that no more will
    come; ``gained`` that work without items got on and goes on from ``cursor`` after a loss.
    Extends the lease. A chunk that gets on is no poison: its kills are forgotten.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    values: dict[str, Any] = {
        "cursor": cursor,
        "lease_until": func.now() + timedelta(seconds=lease_seconds),
    }
    # Where the cursor stands still the work begins there anew, so a step done proves nothing.
    if rows or added or gained:
        values |= {"kills": 0, "faults": 0}
    held = session.execute(
        update(Chunk)
        .where(*holds(lease))
        .values(**values)
        .returning(Chunk.id)
        .execution_options(synchronize_session=False)
    ).first()
    if held is None:
        raise fenced(lease)
    extra: dict[str, Any] = {"total": Job.total + added}
    if seal:
        extra["sealed_at"] = func.now()
    if progress is not None:
        extra["progress"] = progress
    _count(session, lease, rows, extra=extra)


def record_prefix(
    session: Session,
    lease: Lease,
    rows: Sequence[ItemRow],
    *,
    delay_seconds: float = 0,
    faults: int = 0,
) -> None:
    """Record the first items of a chunk and give the rest back to be claimed by another.

    *Narrow*: [lo, lo + len(rows)) is recorded, [lo + len(rows), hi) stays this chunk, pending,
    due after ``delay_seconds`` and with so many ``faults``.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    keep_from = lease.lo + len(rows)
    if not lease.has_items or keep_from >= lease.hi:
        raise ValueError("a prefix leaves at least one item of the chunk")
    end_lease(
        session,
        lease,
        ChunkState.PENDING,
        **WAITS_AGAIN,
        lo=keep_from,
        due_at=func.now() + timedelta(seconds=delay_seconds),
        **({"kills": 0, "faults": faults} if rows else {}),
    )
    _count(session, lease, rows)


def record_stopped(
    session: Session,
    lease: Lease,
    rows: Sequence[ItemRow] = (),
    *,
    before_close: Callable[[Session], None] = lambda _: None,
) -> None:
    """Let go of a chunk of a job that was told to stop.

    Finished items stay, the others count as cancelled, or as expired where it was a deadline.
    ``before_close`` runs in the same transaction, before the job may end.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    # Set with the move to CANCELLING, which the worker has seen, and never again.
    reason = session.scalar(select(Job.stop_reason).where(Job.id == lease.job_id))
    state, counter = stopped_as(reason)
    end_lease(session, lease, state)
    left = max(lease.hi - lease.lo - len(rows), 0)
    _count(session, lease, rows, extra={counter: getattr(Job, counter) + left})
    before_close(session)
    close_stopped_if_let_go(session, lease.tenant_id, lease.job_id)


class _Counted(NamedTuple):
    """A job after a recording; its row is locked until COMMIT."""

    state: str
    total: int
    sealed_at: Any
    #: Items that have ended one way or another.
    done: int


def _count(
    session: Session, lease: Lease, rows: Sequence[ItemRow], extra: dict[str, Any] | None = None
) -> _Counted:
    """Add the rows to the job's counters, store them under the sequence number, tell of it.

    A job whose failure budget this exceeds is told to stop.
    """
    session.info[RECORDS] = True
    ended = Counter(row.state for row in rows)
    job = session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.tenant_id == lease.tenant_id)
        .values(
            seq=Job.seq + 1,
            event_number=Job.event_number + 1,
            succeeded=Job.succeeded + ended[ItemState.SUCCEEDED],
            failed=Job.failed + ended[ItemState.FAILED],
            skipped=Job.skipped + ended[ItemState.SKIPPED],
            updated_at=func.clock_timestamp(),
            **(extra or {}),
        )
        .returning(
            *EVENT_COLUMNS,
            Job.seq,
            Job.sealed_at,
            Job.max_failed_items,
            Job.max_failed_fraction,
            (Job.succeeded + Job.failed + Job.skipped + Job.cancelled + Job.expired).label("done"),
        )
        .execution_options(synchronize_session=False)
    ).one()
    if not rows:
        add_event(session, lease.tenant_id, lease.job_id, PROGRESS, job)
    else:
        session.execute(
            INSERT_ITEMS,
            {
                **event_values(lease.tenant_id, lease.job_id, PROGRESS, job),
                "seq": job.seq,
                "attempt": lease.attempt,
                "rows": rows_as_json(rows),
            },
        )
    state = job.state
    if ended[ItemState.FAILED] and exceeds_budget(
        job.failed,
        job.total if job.sealed_at is not None else None,
        job.max_failed_items,
        job.max_failed_fraction,
    ):
        # The job only: its other chunks end by the sweep, as after a cancel.
        stop = StopReason.FAILURES
        if move_job(session, lease.tenant_id, lease.job_id, JobState.CANCELLING, stop_reason=stop):
            state = JobState.CANCELLING
    return _Counted(state, job.total, job.sealed_at, job.done)


def record_failure(session: Session, lease: Lease, error: dict[str, Any]) -> None:
    """End the whole job, because this chunk shows that it cannot be done.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    lock_open_chunks(session, lease.tenant_id, lease.job_id)
    if session.execute(select(Chunk.id).where(*holds(lease))).first() is None:
        raise fenced(lease)
    session.info[RECORDS] = True
    fail_job(session, lease.tenant_id, lease.job_id, error)


def record_plan(session: Session, lease: Lease) -> None:
    """Seal a planned job: its total is final and its chunks may be claimed.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    end_lease(session, lease, ChunkState.DONE)
    job = _count(session, lease, (), extra={"sealed_at": func.now()})
    if job.state == JobState.CANCELLING:
        close_stopped_if_let_go(session, lease.tenant_id, lease.job_id)
    elif job.total == 0:
        error = InvalidInputError(
            f"there is nothing to recognise in {describe_input(lease.input)}; check its spelling, "
            "and that it holds images",
            code="input_empty",
        )
        fail_job(session, lease.tenant_id, lease.job_id, error.as_dict())
    else:
        # Not from paused: a resume finds the plan sealed and goes on from there.
        move_job(
            session,
            lease.tenant_id,
            lease.job_id,
            JobState.QUEUED,
            sources=[JobState.VALIDATING],
        )
