"""Puts right what nobody is left to put right; any number may run at once, without a leader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.jobs.finalize import (
    close_cancelled_if_let_go,
    close_job,
    fail_job,
    lock_open_chunks,
)
from app.jobs.states import CHUNK_SOURCES, ChunkState, ItemState, JobState
from app.jobs.tables import Chunk, Item, Job, WorkerRow
from app.log import get_logger

log = get_logger(__name__)

#: Rows handled in one transaction, so that none holds its locks for long.
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    freed: int = 0
    killed: int = 0
    cancelled: int = 0
    #: Jobs that nothing would have closed any more; always 0 unless a rule was broken.
    repaired: int = 0

    def __bool__(self) -> bool:
        return bool(self.freed or self.killed or self.cancelled or self.repaired)


def sweep_once(db: Database, *, max_kills: int) -> Swept:
    """Free ended leases, end chunks that keep killing their workers, finish cancels.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        freed = _free_ended_leases(session)
    with db.system() as session:
        poisoned = _poisoned(session, max_kills)
    killed = sum(
        _fail_poisoned(db, row.tenant_id, row.job_id, row.id, max_kills) for row in poisoned
    )
    with db.system() as session:
        cancelling = session.execute(
            select(Job.id, Job.tenant_id).where(Job.state == JobState.CANCELLING).limit(_BATCH)
        ).all()
    for job in cancelling:
        with db.system() as session:
            _cancel_waiting_chunks(session, job.tenant_id, job.id)
    repaired = sum(_close_forgotten(db, row.tenant_id, row.id) for row in _forgotten(db))
    return Swept(freed, killed, len(cancelling), repaired)


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


def _poisoned(
    session: Session, max_kills: int, chunk_id: str | None = None
) -> Sequence[Row[str, str, str, int]]:
    """Waiting chunks whose leases ended without a word again and again."""
    query = select(Chunk.id, Chunk.tenant_id, Chunk.job_id, Chunk.kills).where(
        Chunk.state == ChunkState.PENDING,
        # For the index: the number alone comes as a parameter.
        Chunk.kills > text("0"),
        Chunk.kills >= max_kills,
    )
    if chunk_id is not None:
        query = query.where(Chunk.id == chunk_id)
    return session.execute(query.limit(_BATCH)).all()


def _fail_poisoned(db: Database, tenant_id: str, job_id: str, chunk_id: str, max_kills: int) -> int:
    """Fail the job of a poisoned chunk, if it still is one."""
    with db.system() as session:
        lock_open_chunks(session, tenant_id, job_id)
        found = _poisoned(session, max_kills, chunk_id)
        if not found:
            return 0
        chunk = found[0]
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


def _forgotten(db: Database) -> Sequence[Row[str, str]]:
    """Open jobs without an open chunk: the last record closes a job, so there are none."""
    with db.system() as session:
        return session.execute(
            select(Job.id, Job.tenant_id).where(*_has_no_work_left()).limit(_BATCH)
        ).all()


def _has_no_work_left() -> list[ColumnElement[bool]]:
    return [
        Job.state.in_([JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING]),
        ~exists().where(
            Chunk.job_id == Job.id, Chunk.state.in_([ChunkState.PENDING, ChunkState.RUNNING])
        ),
    ]


def _close_forgotten(db: Database, tenant_id: str, job_id: str) -> int:
    """Close such a job by what its items say, or fail it where they do not add up."""
    with db.system() as session:
        lock = select(Job.id).where(Job.id == job_id).with_for_update()
        if session.execute(lock).first() is None:
            return 0
        # Asked again under the lock, where the job's last record has committed or not begun.
        job = session.execute(
            select(Job.total, Job.sealed_at).where(Job.id == job_id, *_has_no_work_left())
        ).first()
        if job is None:
            return 0
        counted = {
            row.state: row.items
            for row in session.execute(
                select(Item.state, func.count().label("items"))
                .where(Item.job_id == job_id)
                .group_by(Item.state)
            )
        }
        log.error("job_forgotten", job=job_id, total=job.total, counted=counted)
        if job.sealed_at is None or sum(counted.values()) != job.total:
            error = {
                "code": "counts_disagree",
                "detail": f"of {job.total} items {sum(counted.values())} were recorded and no "
                "work is left; what is recorded is kept. Please report this.",
            }
            fail_job(session, tenant_id, job_id, error)
            return 1
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values({state.value: counted.get(state, 0) for state in ItemState} | {"cancelled": 0})
            .execution_options(synchronize_session=False)
        )
        close_job(session, tenant_id, job_id)
        return 1
