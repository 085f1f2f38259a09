"""Jobs that were told to stop: their waiting chunks end, and the jobs when nobody works on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.dispatch.apart import each_apart
from app.jobs.finalize import close_stopped_if_let_go, stopped_as
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk, Job

#: Jobs handled in one sweep.
_BATCH = 200


def end_stopped_jobs(db: Database) -> int:
    """End what no worker holds of the jobs that were told to stop; how many there are.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        stopping = session.execute(
            select(Job.id, Job.tenant_id, Job.stop_reason)
            .where(Job.state == JobState.CANCELLING)
            .limit(_BATCH)
        ).all()

    def end(job: Row[Any]) -> None:
        with db.system() as session:
            _end_waiting_chunks(session, job.tenant_id, job.id, job.stop_reason)

    return len(each_apart(stopping, end))


def _end_waiting_chunks(session: Session, tenant_id: str, job_id: str, reason: str | None) -> None:
    """End the chunks of a stopped job that no worker holds, then the job if that was all."""
    state, counter = stopped_as(reason)
    waiting = (
        select(Chunk.id)
        .where(Chunk.job_id == job_id, Chunk.state == ChunkState.PENDING)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    ended = transition(
        session,
        Chunk,
        state,
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
            .values({counter: getattr(Job, counter) + items, "updated_at": func.clock_timestamp()})
            .execution_options(synchronize_session=False)
        )
    close_stopped_if_let_go(session, tenant_id, job_id)
