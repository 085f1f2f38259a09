"""Reading jobs: one row, whatever the job's size."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, literal_column, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.errors import NotFoundError
from app.jobs.states import TERMINAL_JOB_STATES, JobKind, JobState
from app.jobs.tables import Job


def get_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """The job's row. Raises NotFoundError where this tenant has no such job."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id))
    if job is None:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    return job


@dataclass(frozen=True, slots=True)
class JobMark:
    """How far a job is, without what its client sent: enough to tell whether there is news."""

    #: Another one after every change of the row.
    version: str
    state: str
    total: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int
    running_at: datetime | None
    sealed_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime


# The transaction that wrote the row: PostgreSQL gives every version of a row its own.
_XMIN: ColumnElement[str] = literal_column("jobs.xmin::text")
_MARK = """
    SELECT xmin::text, state, total, succeeded, failed, skipped, cancelled, expired,
           running_at, sealed_at, ended_at, updated_at
    FROM jobs
    WHERE id = %(job_id)s AND tenant_id = bound.tenant_id
"""


def get_mark(db: Database, tenant_id: str, job_id: str) -> JobMark:
    """What a poll that may bring no news needs, in one round trip.

    Raises:
        NotFoundError: as :func:`get_job`.
        UnavailableError: the database does not answer.
    """
    rows = db.ask_as(tenant_id, _MARK, {"job_id": job_id})
    if not rows:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    row = rows[0]
    columns: tuple[Any, ...] = tuple(row)[1:]
    return JobMark(_version(row.xmin, row.updated_at), *columns)


def get_job_and_version(session: Session, tenant_id: str, job_id: str) -> tuple[Job, str]:
    """The job's row, and the version of it that a :class:`JobMark` names."""
    row = session.execute(
        select(Job, _XMIN).where(Job.id == job_id, Job.tenant_id == tenant_id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    return row[0], _version(row[1], row[0].updated_at)


def _version(xmin: str, updated_at: datetime) -> str:
    # With the time as well: transactions are counted anew where a backup is restored.
    return f"{xmin} {updated_at.isoformat()}"


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


def counts(job: Job) -> dict[str, int]:
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


def rate_and_eta(job: Job | JobMark) -> tuple[float | None, float | None]:
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
