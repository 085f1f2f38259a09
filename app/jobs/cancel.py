"""Cancelling a job."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.errors import ConflictError
from app.jobs.move import move_job
from app.jobs.progress import get_job
from app.jobs.states import JobState, StopReason
from app.jobs.tables import Job


def cancel_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """Ask for a job to stop; it is ``cancelling`` until no worker holds a chunk of it.

    Writes the job only: the sweeper ends its waiting chunks, workers see the state between
    ImageBatches. Asking again changes nothing. What had finished stays readable.

    Raises:
        NotFoundError: no such job.
        ConflictError: the job has already ended.
    """
    move_job(session, tenant_id, job_id, JobState.CANCELLING, stop_reason=StopReason.CANCEL)
    job = get_job(session, tenant_id, job_id)
    # The caller may have read the row earlier in this session.
    session.refresh(job)
    if job.state not in (JobState.CANCELLING, JobState.CANCELLED):
        raise ConflictError(f"job {job_id} has already ended as {job.state}", code="job_ended")
    return job
