"""Puts right what nobody is left to put right; any number may run at once, without a leader."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Row, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.jobs.finalize import close_cancelled_if_let_go, fail_job
from app.jobs.states import CHUNK_SOURCES, ChunkState, JobState
from app.jobs.tables import Chunk, Job, WorkerRow

#: Rows handled in one transaction, so that none holds its locks for long.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    freed: int = 0
    killed: int = 0
    cancelled: int = 0

    def __bool__(self) -> bool:
        return bool(self.freed or self.killed or self.cancelled)


def sweep_once(db: Database, *, max_kills: int) -> Swept:
    """Free ended leases, end chunks that keep killing their workers, finish cancels.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        freed = _free_ended_leases(session)
    killed = sum(_fail_poisoned(db, row.id, max_kills) for row in _poisoned(db, max_kills))
    with db.system() as session:
        cancelling = session.execute(
            select(Job.id, Job.tenant_id).where(Job.state == JobState.CANCELLING).limit(_BATCH)
        ).all()
    for job in cancelling:
        with db.system() as session:
            _cancel_waiting_chunks(session, job.tenant_id, job.id)
    return Swept(freed, killed, len(cancelling))


def _free_ended_leases(session: Session) -> int:
    """Running chunks whose lease has ended, or whose worker is known to be gone, wait again."""
    worker_gone = exists().where(WorkerRow.id == Chunk.worker_id, WorkerRow.gone_at.is_not(None))
    ended = (
        select(Chunk.id)
        .where(
            Chunk.state == ChunkState.RUNNING,
            or_(Chunk.lease_until < func.now(), worker_gone),
        )
        .limit(_BATCH)
        .with_for_update(skip_locked=True, of=Chunk)
        .scalar_subquery()
    )
    freed = transition(
        session,
        Chunk,
        ChunkState.PENDING,
        sources=CHUNK_SOURCES[ChunkState.PENDING],
        where=[Chunk.id.in_(ended)],
        values={
            "lease_until": None,
            "worker_id": None,
            "last_rung_at": None,
            "progress": 0,
            "due_at": func.now(),
            "kills": Chunk.kills + 1,
        },
    )
    return len(freed)


def _poisoned(db: Database, max_kills: int) -> list[Row[tuple[str]]]:
    with db.system() as session:
        return list(
            session.execute(
                select(Chunk.id)
                .where(Chunk.state == ChunkState.PENDING, Chunk.kills >= max_kills)
                .limit(_BATCH)
            )
        )


def _fail_poisoned(db: Database, chunk_id: str, max_kills: int) -> int:
    """Fail the job of a chunk whose leases ended without a word again and again."""
    with db.system() as session:
        chunk = session.scalar(
            select(Chunk)
            .where(
                Chunk.id == chunk_id,
                Chunk.state == ChunkState.PENDING,
                Chunk.kills >= max_kills,
            )
            .with_for_update(skip_locked=True)
        )
        if chunk is None:
            return 0
        error = {
            "code": "worker_killed",
            "detail": (
                f"{chunk.kills} attempts at one chunk ended without an answer; the workers' "
                "logs say why. What had finished is kept."
            ),
        }
        fail_job(session, chunk.tenant_id, chunk.job_id, error)
        return 1


def _cancel_waiting_chunks(session: Session, tenant_id: str, job_id: str) -> None:
    """End the chunks of a cancelled job that no worker holds, then the job if that was all."""
    waiting = (
        select(Chunk.id)
        .where(Chunk.job_id == job_id, Chunk.state == ChunkState.PENDING)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    ended = transition(
        session,
        Chunk,
        ChunkState.CANCELLED,
        sources=frozenset({ChunkState.PENDING}),
        where=[Chunk.id.in_(waiting)],
        values={"last_rung_at": None},
        returning=(Chunk.lo, Chunk.hi),
    )
    items = sum(row.hi - row.lo for row in ended)
    if items:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.tenant_id == tenant_id)
            .values(cancelled=Job.cancelled + items, updated_at=func.clock_timestamp())
            .execution_options(synchronize_session=False)
        )
    close_cancelled_if_let_go(session, tenant_id, job_id)
