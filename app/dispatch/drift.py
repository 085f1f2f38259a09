"""Jobs that nothing would close any more, which a broken rule alone can bring about."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Row, exists, func, select, update

from app.db.session import Database
from app.jobs.finalize import close_job, fail_job
from app.jobs.states import ChunkState, ItemState, JobState
from app.jobs.tables import Chunk, Item, Job
from app.log import get_logger

log = get_logger(__name__)

#: Jobs handled in one sweep.
_BATCH = 200


def close_forgotten_jobs(db: Database) -> int:
    """Close open jobs that have no work left; how many: 0 unless a rule was broken.

    Raises:
        UnavailableError: the database does not answer.
    """
    return sum(_close_forgotten(db, row.tenant_id, row.id) for row in _forgotten(db))


def _forgotten(db: Database) -> Sequence[Row[str, str]]:
    """Open jobs without an open chunk: the last record closes a job, so there are none."""
    with db.system() as session:
        return session.execute(
            select(Job.id, Job.tenant_id).where(*_has_no_work_left()).limit(_BATCH)
        ).all()


def _has_no_work_left() -> list[ColumnElement[bool]]:
    return [
        Job.state.in_([JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED]),
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
            .values(
                {state.value: counted.get(state, 0) for state in ItemState}
                | {"cancelled": 0, "expired": 0}
            )
            .execution_options(synchronize_session=False)
        )
        close_job(session, tenant_id, job_id)
        return 1
