"""What a poll asks: everything that an answer shows, by one question without a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.db.session import Database
from app.errors import NotFoundError
from app.jobs.tables import Job


@dataclass(frozen=True, slots=True)
class Polled:
    """A job as it is now."""

    #: Columns of :class:`Job` by name; in a glance only those that tell of progress.
    job: Any
    #: Another one after every change of the row.
    version: str


# xmin is the transaction that wrote the row: PostgreSQL gives every version of a row its own.
_GLANCE = """
    SELECT xmin::text, state, total, succeeded, failed, skipped, cancelled, expired,
           running_at, sealed_at, ended_at, updated_at
    FROM jobs
    WHERE id = %(job_id)s AND tenant_id = bound.tenant_id
"""
_PLAIN = ", ".join(
    f"jobs.{column.name}"
    for column in Job.__table__.columns
    if column.name not in ("input", "metadata")
)
# A poll must not carry a thousand locations that the client sent itself.
_WHOLE = f"""
    SELECT jobs.xmin::text, {_PLAIN}, jobs.metadata AS metadata_,
           CASE WHEN jobs.input ? 'items'
                THEN jsonb_build_object('items_count', jsonb_array_length(jobs.input -> 'items'))
                ELSE jobs.input
           END AS input,
           coalesce(models.name || '@' || model_versions.number,
                    jobs.shared_version ->> 'reference') AS model,
           datasets.name || '@' || dataset_versions.number AS dataset
    FROM jobs
    LEFT JOIN model_versions ON model_versions.id = jobs.model_version_id
        AND model_versions.tenant_id = bound.tenant_id
    LEFT JOIN models ON models.id = model_versions.model_id
    LEFT JOIN dataset_versions ON dataset_versions.id = jobs.dataset_version_id
        AND dataset_versions.tenant_id = bound.tenant_id
    LEFT JOIN datasets ON datasets.id = dataset_versions.dataset_id
    WHERE jobs.id = %(job_id)s AND jobs.tenant_id = bound.tenant_id
"""  # noqa: S608  joined from the names of our own columns


def glance_at_job(db: Database, tenant_id: str, job_id: str) -> Polled:
    """What a poll needs that may bring no news.

    Raises:
        NotFoundError: ``job_not_found``: this tenant has no such job.
        UnavailableError: the database does not answer.
    """
    return _ask(db, tenant_id, job_id, _GLANCE)


def poll_job(db: Database, tenant_id: str, job_id: str) -> Polled:
    """The whole row, with ``model`` and ``dataset``, the names of the versions that it uses.

    Raises:
        NotFoundError: ``job_not_found``: this tenant has no such job.
        UnavailableError: the database does not answer.
    """
    return _ask(db, tenant_id, job_id, _WHOLE)


def _ask(db: Database, tenant_id: str, job_id: str, question: str) -> Polled:
    rows = db.ask_as(tenant_id, question, {"job_id": job_id})
    if not rows:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    row = rows[0]
    # With the time as well: transactions are counted anew where a backup is restored.
    return Polled(row, f"{row.xmin} {row.updated_at.isoformat()}")
