"""Leases: how a worker gets the right to a chunk, keeps it and gives it back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.errors import FencedError
from app.jobs.items import slice_items
from app.jobs.move import move_job
from app.jobs.states import (
    CHUNK_SOURCES,
    CLOSING_TASKS,
    ChunkState,
    ChunkTask,
    JobKind,
    JobState,
)
from app.jobs.tables import Chunk, Job

#: Kills, or faults nobody knows, after which a chunk of items is not run again as it is: it is
#: narrowed first. Once may be chance.
NARROW_AT = 2

#: The columns of a chunk that is back in nobody's hands and may be rung for at once.
WAITS_AGAIN: dict[str, Any] = {
    "worker_id": None,
    "lease_until": None,
    "last_rung_at": None,
    "progress": 0,
}


@dataclass(frozen=True, slots=True)
class Lease:
    """The time-limited right of one worker to a chunk, with all it needs to do the work.

    ``attempt`` is the fencing token: every write of this worker names it, and is refused
    once another worker has claimed the chunk.
    """

    chunk_id: str
    job_id: str
    tenant_id: str
    task: ChunkTask
    attempt: int
    lo: int
    hi: int
    items: dict[str, Any] | None
    cursor: dict[str, Any] | None
    kind: JobKind
    input: dict[str, Any]
    options: dict[str, Any]
    model_version_id: str | None
    dataset_version_id: str | None
    #: Whether the model version is another tenant's.
    is_shared: bool = False

    @property
    def has_items(self) -> bool:
        """Whether the chunk is a range of items, rather than one step for the whole job."""
        return self.hi > self.lo

    @property
    def trial(self) -> int | None:
        """The number of the trial of a search, if the chunk is one."""
        return self.lo if self.task is ChunkTask.TRIAL else None


def claim_chunk(
    session: Session,
    tenant_id: str,
    chunk_id: str,
    *,
    task: ChunkTask,
    worker_id: str,
    lease_seconds: float,
    kills: int | None = 0,
) -> Lease | None:
    """Take the lease of a chunk of ``task`` that is pending and due.

    One statement on the database's clock, so of two workers one gets it. None means that
    there is nothing to do: done already, held by another, paused, told to stop, past its
    deadline, of another task or of another tenant. A lease that has ended is the sweeper's, which
    counts the kill and narrows.

    A chunk that has killed workers is a suspect and is left unless ``kills`` says that it may
    have killed so many; None is any number.
    """
    job_wants_it = exists().where(
        Job.id == Chunk.job_id,
        # The sweep will stop it: what is begun now would be for nothing.
        or_(Job.deadline_at.is_(None), Job.deadline_at > func.now()),
        or_(
            and_(Job.state == JobState.VALIDATING, Chunk.task == ChunkTask.PLAN),
            and_(Job.state.in_([JobState.QUEUED, JobState.RUNNING]), Chunk.task != ChunkTask.PLAN),
            and_(Job.state == JobState.FINALIZING, Chunk.task.in_(CLOSING_TASKS.values())),
        ),
    )
    rows = transition(
        session,
        Chunk,
        ChunkState.RUNNING,
        sources=CHUNK_SOURCES[ChunkState.RUNNING],
        where=[
            Chunk.id == chunk_id,
            Chunk.tenant_id == tenant_id,
            Chunk.task == task,
            Chunk.due_at <= func.now(),
            *([] if kills is None else [Chunk.kills <= kills]),
            job_wants_it,
        ],
        values={
            "attempt": Chunk.attempt + 1,
            "worker_id": worker_id,
            "lease_until": func.now() + timedelta(seconds=lease_seconds),
            "progress": 0,
        },
        returning=(
            Chunk.job_id,
            Chunk.attempt,
            Chunk.lo,
            Chunk.hi,
            Chunk.first_item,
            Chunk.cursor,
        ),
    )
    if not rows:
        return None
    chunk = rows[0]
    if task is not ChunkTask.PLAN:
        _start_job(session, tenant_id, chunk.job_id)
    job = session.execute(
        select(
            Job.kind,
            Job.input,
            Job.options,
            Job.model_version_id,
            Job.dataset_version_id,
            Job.shared_version_id,
        ).where(Job.id == chunk.job_id, Job.tenant_id == tenant_id)
    ).one()
    # Read apart: RETURNING would send the old and possibly large value through the UPDATE.
    items = session.scalar(select(Chunk.items).where(Chunk.id == chunk_id))
    if items is not None:
        # References of recorded items stay in the row; the lease is for the others.
        items = slice_items(items, chunk.lo - chunk.first_item, chunk.hi - chunk.first_item)
    return Lease(
        chunk_id=chunk_id,
        job_id=chunk.job_id,
        tenant_id=tenant_id,
        task=task,
        attempt=chunk.attempt,
        lo=chunk.lo,
        hi=chunk.hi,
        items=items,
        cursor=chunk.cursor,
        kind=JobKind(job.kind),
        input=job.input,
        options=job.options,
        model_version_id=job.model_version_id or job.shared_version_id,
        dataset_version_id=job.dataset_version_id,
        is_shared=job.shared_version_id is not None,
    )


def extend_lease(
    session: Session, lease: Lease, *, lease_seconds: float, progress: int | None = None
) -> JobState | None:
    """Heartbeat: keep the lease for another ``lease_seconds`` and report progress.

    Returns the state of the job, so that the worker sees a cancel; None means the lease is
    lost and everything computed under it must be discarded.
    """
    held = session.execute(
        update(Chunk)
        .where(*holds(lease))
        .values(
            lease_until=func.now() + timedelta(seconds=lease_seconds),
            **({} if progress is None else {"progress": progress}),
        )
        .returning(Chunk.job_id)
        .execution_options(synchronize_session=False)
    ).first()
    return None if held is None else _job_state(session, lease)


def look_at_lease(session: Session, lease: Lease) -> JobState | None:
    """What :func:`extend_lease` returns, without extending anything: a cheap, frequent look."""
    held = session.execute(select(Chunk.id).where(*holds(lease))).first()
    return None if held is None else _job_state(session, lease)


def suspect_kills(session: Session, tenant_id: str, chunk_id: str) -> int:
    """Kills that a claim must allow to get this chunk; 0 where it is no suspect, or not due.

    Never so many that the chunk has to be narrowed before it runs again.
    """
    found = session.scalar(
        select(Chunk.kills).where(
            Chunk.id == chunk_id,
            Chunk.tenant_id == tenant_id,
            Chunk.state == ChunkState.PENDING,
            Chunk.due_at <= func.now(),
            or_(Chunk.kills < NARROW_AT, Chunk.lo == Chunk.hi),
        )
    )
    return found or 0


def faults_so_far(session: Session, lease: Lease) -> int | None:
    """Tries of the chunk that failed before this one; None where this lease is lost."""
    return session.scalar(select(Chunk.faults).where(*holds(lease)))


def release_chunk(
    session: Session, lease: Lease, *, delay_seconds: float = 0, failed: bool = False
) -> bool:
    """Give the chunk back unfinished, due again after ``delay_seconds``.

    ``failed`` counts a fault: a chunk that keeps failing must not go round for ever.
    Returns False where the lease had been lost.
    """
    return bool(
        transition(
            session,
            Chunk,
            ChunkState.PENDING,
            sources=CHUNK_SOURCES[ChunkState.PENDING],
            where=holds(lease),
            values={
                **WAITS_AGAIN,
                "faults": Chunk.faults + int(failed),
                "due_at": func.now() + timedelta(seconds=delay_seconds),
            },
        )
    )


def end_lease(session: Session, lease: Lease, to: ChunkState, **values: Any) -> None:
    """Move the chunk on from under its lease, with further columns as ``values``.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    moved = transition(
        session,
        Chunk,
        to,
        sources=CHUNK_SOURCES[to],
        where=holds(lease),
        values={"lease_until": None, "worker_id": None, **values},
    )
    if not moved:
        raise fenced(lease)


def fenced(lease: Lease) -> FencedError:
    """The error of an attempt that has lost its chunk."""
    return FencedError(f"attempt {lease.attempt} of chunk {lease.chunk_id} lost its lease")


def holds(lease: Lease) -> list[Any]:
    """The WHERE of every write under a lease: this chunk, still this attempt, still running."""
    return [
        Chunk.id == lease.chunk_id,
        Chunk.tenant_id == lease.tenant_id,
        Chunk.attempt == lease.attempt,
        Chunk.state == ChunkState.RUNNING,
    ]


def _job_state(session: Session, lease: Lease) -> JobState:
    state = session.scalar(select(Job.state).where(Job.id == lease.job_id))
    return JobState(str(state))


def _start_job(session: Session, tenant_id: str, job_id: str) -> None:
    move_job(session, tenant_id, job_id, JobState.RUNNING, sources=[JobState.QUEUED])
