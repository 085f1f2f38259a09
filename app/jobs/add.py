"""A new job as rows: itself, the chunk that starts it, and the event that tells of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.ids import CHUNK, JOB, new_id
from app.jobs.events import INSERT_EVENT, event_type, event_values
from app.jobs.limits import NO_LIMITS, Limits, check_deadline
from app.jobs.states import ChunkTask, JobKind, JobState
from app.jobs.tables import Job
from app.queues.names import QUEUE_OF_TASK

# By name: a release that adds a column migrates while this one serves, and PostgreSQL refuses a
# prepared statement whose answer has changed its form.
_COLUMNS = ", ".join(column.name for column in Job.__table__.columns)

# In one round trip: this is what a submission waits for.
_INSERT = select(Job).from_statement(
    text(
        f"""
        WITH job AS (
            INSERT INTO jobs (id, tenant_id, kind, state, priority, input, options, metadata,
                              model_version_id, dataset_version_id, retry_of,
                              key_id, shared_version_id, shared_version,
                              deadline_at, max_failed_items, max_failed_fraction,
                              queued_at, sealed_at, event_number,
                              total, succeeded, failed, skipped, cancelled, seq)
            VALUES (:job_id, :tenant_id, :kind, :state, :priority, CAST(:input AS jsonb),
                    CAST(:options AS jsonb), CAST(:metadata AS jsonb),
                    :model_version_id, :dataset_version_id, :retry_of,
                    :key_id, :shared_version_id, CAST(:shared_version AS jsonb),
                    :deadline_at, :max_failed_items, :max_failed_fraction,
                    CASE WHEN :planned THEN NULL ELSE now() END,
                    CASE WHEN :sealed THEN now() END, :event_number,
                    0, 0, 0, 0, 0, 0)
            RETURNING {_COLUMNS}
        ), chunk AS (
            INSERT INTO chunks (id, tenant_id, job_id, task, queue, state, lo, hi, attempt,
                                kills, progress)
            VALUES (:chunk_id, :tenant_id, :job_id, :task, :queue, 'pending', 0, 0, 0, 0, 0)
        ), event AS (
            {INSERT_EVENT}
        )
        SELECT {_COLUMNS} FROM job
        """  # noqa: S608  joined from our own constants
    )
)


@dataclass(frozen=True, slots=True)
class _FirstEvent:
    """What the first event tells: a state, and that there is nothing to count yet."""

    state: JobState
    event_number: int = 1
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    expired: int = 0
    progress: None = None
    error: None = None


def add_job(
    session: Session,
    tenant_id: str,
    kind: JobKind,
    *,
    first: ChunkTask,
    input: dict[str, Any],  # noqa: A002  (the column's name)
    options: dict[str, Any] | None = None,
    model_version_id: str | None = None,
    dataset_version_id: str | None = None,
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
    retry_of: str | None = None,
    key_id: str | None = None,
    shared_version_id: str | None = None,
    shared_version: Mapping[str, Any] | None = None,
    sealed: bool = True,
) -> Job:
    """A job with its first chunk: the plan, or for jobs without items the whole work.

    Raises:
        InvalidInputError: ``deadline_passed``.
    """
    planned = first is ChunkTask.PLAN
    state = JobState.VALIDATING if planned else JobState.QUEUED
    job_id = new_id(JOB)
    words = {
        "kind": kind,
        "state": state,
        "planned": planned,
        "sealed": sealed and not planned,
        "priority": priority,
        "input": json.dumps(input),
        "options": json.dumps(options or {}),
        "metadata": json.dumps(dict(metadata or {})),
        "model_version_id": model_version_id,
        "dataset_version_id": dataset_version_id,
        "retry_of": retry_of,
        "key_id": key_id,
        "shared_version_id": shared_version_id,
        "shared_version": None if shared_version is None else json.dumps(dict(shared_version)),
        "chunk_id": new_id(CHUNK),
        "task": first,
        "queue": QUEUE_OF_TASK[first],
        **asdict(limits),
        **event_values(tenant_id, job_id, event_type(state), _FirstEvent(state)),
    }
    job: Job = session.scalars(_INSERT, words).one()
    check_deadline(job.deadline_at, job.created_at)
    return job
