"""Trainings under way whose tenant has used up its training minutes are told to stop."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select

from app.db.session import Database
from app.dispatch.apart import each_apart
from app.jobs.move import move_job
from app.jobs.states import TRAINING_TASKS, ChunkState, JobState, StopReason
from app.jobs.tables import Chunk
from app.jobs.training_time import quota_used_up, used_seconds
from app.tenants.tables import Tenant

#: Tenants handled in one sweep.
_BATCH = 200


def stop_overspent_trainings(db: Database, max_training_minutes: int) -> int:
    """Tell the running trainings of tenants over their quota to stop; how many there were.

    ``max_training_minutes`` is that of a tenant without one of its own. The jobs end failed, with
    the quota's code, once their workers have let go.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        training = session.execute(
            select(
                Chunk.tenant_id.label("id"),
                func.coalesce(Tenant.max_training_minutes, max_training_minutes).label("minutes"),
            )
            .join(Tenant, Tenant.id == Chunk.tenant_id)
            .where(Chunk.state == ChunkState.RUNNING, Chunk.task.in_(TRAINING_TASKS))
            .distinct()
            .limit(_BATCH)
        ).all()
        overspent = [
            tenant for tenant in training if used_seconds(session, tenant.id) >= tenant.minutes * 60
        ]
    return sum(each_apart(overspent, lambda tenant: _stop(db, tenant)))


def _stop(db: Database, tenant: Row[Any]) -> int:
    with db.system() as session:
        jobs = session.scalars(
            select(Chunk.job_id)
            .where(
                Chunk.tenant_id == tenant.id,
                Chunk.state == ChunkState.RUNNING,
                Chunk.task.in_(TRAINING_TASKS),
            )
            .distinct()
        ).all()
    stopped = 0
    # One transaction each: nobody holds the rows of two jobs.
    for job_id in jobs:
        with db.system() as session:
            stopped += move_job(
                session,
                tenant.id,
                job_id,
                JobState.CANCELLING,
                stop_reason=StopReason.TRAINING_MINUTES,
                error=quota_used_up(tenant.minutes).as_dict(),
            )
    return stopped
