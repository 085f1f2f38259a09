"""Leases that ended without a word: the chunk waits again, is narrowed, or ends its job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, exists, func, or_, select, text
from sqlalchemy.orm import Session

from app.clock import monotonic_seconds
from app.db.session import Database
from app.db.transition import transition
from app.dispatch.apart import each_apart
from app.errors import UnavailableError
from app.jobs.claim import NARROW_AT, WAITS_AGAIN
from app.jobs.finalize import fail_job, lock_open_chunks
from app.jobs.narrow import Narrowed, narrow_killed_chunk
from app.jobs.states import CHUNK_SOURCES, ChunkState, JobState
from app.jobs.tables import Chunk, Job, WorkerRow
from app.log import get_logger

log = get_logger(__name__)

#: Rows handled in one transaction, so that none holds its locks for long.
_BATCH = 200


class LeaseEnds:
    """Frees ended leases, but spares those that nobody could keep since the database was away.

    When it is back, whoever lives gets the time of one lease to renew its own: as if every lease
    had been extended at that moment. To count them as kills would blame the chunks of all workers.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._spared_until = monotonic_seconds()

    def free(self, db: Database) -> int:
        """Do what :func:`free_ended_leases` does, as far as that is fair now.

        Raises:
            UnavailableError: the database does not answer.
        """
        spares = monotonic_seconds() < self._spared_until
        try:
            return free_ended_leases(db, of_gone_only=spares)
        except UnavailableError:
            self._spared_until = monotonic_seconds() + self._lease_seconds
            raise


def free_ended_leases(db: Database, *, of_gone_only: bool = False) -> int:
    """Let every chunk wait again whose lease has ended; how many.

    With ``of_gone_only`` just those whose worker is known to be gone.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        return _free_ended_leases(session, of_gone_only=of_gone_only)


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

    def narrow(row: Row[Any]) -> Narrowed | None:
        # One transaction each: a recording locks its job, and nobody may hold two jobs.
        with db.system() as session:
            outcome = narrow_killed_chunk(session, row.tenant_id, row.id)
        if outcome is not None:
            log.warning("chunk_narrowed", chunk=row.id, outcome=outcome.name.lower())
        return outcome

    return Counter(filter(None, each_apart(poisoned, narrow)))


def fail_poisoned(db: Database, max_kills: int) -> int:
    """Fail the jobs of chunks without items that killed their workers again and again; how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        poisoned = _poisoned(session, max_kills)
    return sum(
        each_apart(
            poisoned,
            lambda row: _fail_poisoned(db, row.tenant_id, row.job_id, row.id, max_kills),
        )
    )


def _free_ended_leases(session: Session, *, of_gone_only: bool = False) -> int:
    """Running chunks whose lease has ended, or whose worker is known to be gone, wait again."""
    worker_gone = exists().where(WorkerRow.id == Chunk.worker_id, WorkerRow.gone_at.is_not(None))
    ended = (
        select(Chunk.id)
        .where(
            Chunk.state == ChunkState.RUNNING,
            worker_gone if of_gone_only else or_(Chunk.lease_until < func.now(), worker_gone),
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
        values={**WAITS_AGAIN, "due_at": func.now(), "kills": Chunk.kills + 1},
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
