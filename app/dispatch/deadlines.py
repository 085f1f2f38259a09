"""Jobs whose deadline has passed are told to stop."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select

from app.db.session import Database
from app.dispatch.apart import each_apart
from app.jobs.move import move_job
from app.jobs.states import JOB_SOURCES, JobState, StopReason
from app.jobs.tables import Job

#: Jobs handled in one sweep.
_BATCH = 200


def stop_overdue_jobs(db: Database) -> int:
    """Tell open jobs past their deadline to stop, paused ones too; how many there were.

    Writes the jobs only, one transaction each. They end expired once no worker holds a chunk.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        overdue = session.execute(
            select(Job.id, Job.tenant_id)
            .where(
                Job.ended_at.is_(None),
                Job.deadline_at <= func.now(),
                Job.state.in_(JOB_SOURCES[JobState.CANCELLING]),
            )
            .order_by(Job.deadline_at)
            .limit(_BATCH)
        ).all()

    def stop(job: Row[Any]) -> bool:
        with db.system() as session:
            return move_job(
                session,
                job.tenant_id,
                job.id,
                JobState.CANCELLING,
                stop_reason=StopReason.DEADLINE,
            )

    return sum(each_apart(overdue, stop))
