"""Pausing a job and letting it go on."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import ConflictError
from app.jobs.move import move_job
from app.jobs.progress import get_job
from app.jobs.states import TERMINAL_JOB_STATES, JobState
from app.jobs.tables import Job


def pause_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """Hold a job: nothing more of it is claimed until it is resumed.

    Writes the job only: a worker that holds a chunk sees the state between ImageBatches,
    records what it has finished and gives the rest back. Such a record may be the last and
    close the job. Asking again changes nothing.

    Raises:
        NotFoundError: no such job.
        ConflictError: ``job_ended``, or ``job_cancelling``: it was told to stop.
    """
    move_job(session, tenant_id, job_id, JobState.PAUSED)
    return _answer(session, tenant_id, job_id)


def resume_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """Let a paused job go on where it stood; a job that is not paused stays as it is.

    Raises:
        NotFoundError: no such job.
        ConflictError: ``job_ended``, or ``job_cancelling``: it was told to stop.
    """
    # Locked, so that the end of its plan, which may come meanwhile, is seen or sees the move.
    job = session.execute(
        select(Job.state, Job.queued_at, Job.running_at, Job.sealed_at)
        .where(Job.id == job_id, Job.tenant_id == tenant_id)
        .with_for_update()
    ).first()
    if job is not None and job.state == JobState.PAUSED:
        if job.running_at is not None:
            # It began to run when it did: the rate and the time it took are counted from there.
            move_job(session, tenant_id, job_id, JobState.RUNNING, running_at=Job.running_at)
        elif job.sealed_at is None and job.queued_at is None:
            move_job(session, tenant_id, job_id, JobState.VALIDATING)
        else:
            queued_at = func.coalesce(Job.queued_at, func.now())
            move_job(session, tenant_id, job_id, JobState.QUEUED, queued_at=queued_at)
    return _answer(session, tenant_id, job_id)


def _answer(session: Session, tenant_id: str, job_id: str) -> Job:
    job = get_job(session, tenant_id, job_id)
    # The caller may have read the row earlier in this session.
    session.refresh(job)
    if job.state in TERMINAL_JOB_STATES:
        raise ConflictError(f"job {job_id} has already ended as {job.state}", code="job_ended")
    if job.state == JobState.CANCELLING:
        raise ConflictError(
            f"job {job_id} was told to stop and will not go on; retry it once it has ended",
            code="job_cancelling",
        )
    return job
