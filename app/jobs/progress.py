"""Reading jobs: one row, whatever the job's size."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.errors import NotFoundError
from app.jobs.states import TERMINAL_JOB_STATES, JobKind, JobState
from app.jobs.tables import Job


def get_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """The job's row. Raises NotFoundError where this tenant has no such job."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id))
    if job is None:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    return job


def list_jobs(
    session: Session,
    tenant_id: str,
    *,
    after: str | None = None,
    limit: int = 50,
    kind: JobKind | None = None,
    state: JobState | None = None,
) -> tuple[list[Job], bool]:
    """A page of jobs, newest first, and whether more follow. ``after`` is the last id seen."""
    query = select(Job).where(Job.tenant_id == tenant_id).order_by(Job.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Job.id < after)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if state is not None:
        query = query.where(Job.state == state)
    rows = list(session.scalars(query))
    return rows[:limit], len(rows) > limit


def counts(job: Job | Row[Any]) -> dict[str, int]:
    """Items by how they ended; in a closed job they sum to ``total``.

    ``done`` are those that were worked on: cancelled and expired ones were left untouched.
    """
    return {
        "total": job.total,
        "done": job.succeeded + job.failed + job.skipped,
        "succeeded": job.succeeded,
        "failed": job.failed,
        "skipped": job.skipped,
        "cancelled": job.cancelled,
        "expired": job.expired,
    }


def rate_and_eta(job: Job | Row[Any]) -> tuple[float | None, float | None]:
    """Items per second since the job began to run, and seconds that are left.

    Computed from stored columns alone, so the same row gives the same answer: a poll that
    brings nothing new has the same ETag.
    """
    worked = job.succeeded + job.failed + job.skipped
    if job.running_at is None or worked == 0:
        return None, None
    until = job.ended_at or job.updated_at
    seconds = (until - job.running_at).total_seconds()
    if seconds <= 0:
        return None, None
    rate = worked / seconds
    if job.state in TERMINAL_JOB_STATES | {JobState.PAUSED} or job.sealed_at is None:
        return rate, None
    return rate, max(job.total - worked - job.cancelled - job.expired, 0) / rate
