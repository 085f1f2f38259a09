"""Leases that ended without a word: the chunk waits again, is narrowed, or ends its job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Row, exists, func, or_, select, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.jobs.claim import NARROW_AT
from app.jobs.finalize import fail_job, lock_open_chunks
from app.jobs.narrow import Narrowed, narrow_killed_chunk
from app.jobs.states import CHUNK_SOURCES, ChunkState, JobState
from app.jobs.tables import Chunk, Job, WorkerRow
from app.log import get_logger

log = get_logger(__name__)

#: Rows handled in one transaction, so that none holds its locks for long.
_BATCH = 200


def free_ended_leases(db: Database) -> int:
    """Let every chunk wait again whose lease has ended; how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        return _free_ended_leases(session)


def narrow_poisoned(db: Database) -> Counter[Narrowed]:
    """Narrow every chunk of items that killed its workers again; what came of how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        poisoned = session.execute(
            select(Chunk.id, Chunk.tenant_id)
            .where(
                *_killed(NARROW_AT),
                Chunk.lo < Chunk.hi,
                # A last item of a job that is held stays as it is, and must not be looked at first.
                or_(
                    Chunk.hi - Chunk.lo > 1,
                    exists().where(
                        Job.id == Chunk.job_id,
                        Job.state.in_([JobState.QUEUED, JobState.RUNNING]),
                    ),
                ),
            )
            .limit(_BATCH)
        ).all()
    outcomes: Counter[Narrowed] = Counter()
    for row in poisoned:
        # One transaction each: a recording locks its job, and nobody may hold two jobs.
        with db.system() as session:
            outcome = narrow_killed_chunk(session, row.tenant_id, row.id)
        if outcome is not None:
            log.warning("chunk_narrowed", chunk=row.id, outcome=outcome.name.lower())
            outcomes[outcome] += 1
    return outcomes


def fail_poisoned(db: Database, max_kills: int) -> int:
    """Fail the jobs of chunks without items that killed their workers again and again; how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        poisoned = _poisoned(session, max_kills)
    return sum(_fail_poisoned(db, row.tenant_id, row.job_id, row.id, max_kills) for row in poisoned)


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
    """Waiting chunks without items whose leases ended without a word again and again."""
    query = select(Chunk.id, Chunk.tenant_id, Chunk.job_id, Chunk.kills).where(
        *_killed(max_kills), Chunk.lo == Chunk.hi
    )
    if chunk_id is not None:
        query = query.where(Chunk.id == chunk_id)
    return session.execute(query.limit(_BATCH)).all()


def _killed(times: int) -> list[ColumnElement[bool]]:
    return [
        Chunk.state == ChunkState.PENDING,
        # For the index: the number alone comes as a parameter.
        Chunk.kills > text("0"),
        Chunk.kills >= times,
    ]


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
