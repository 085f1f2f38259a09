"""Retrying what a job did not finish well: always a new job, for closed items never reopen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.errors import ConflictError, InvalidInputError
from app.jobs.add import add_job
from app.jobs.limits import NO_LIMITS, Limits
from app.jobs.progress import get_job
from app.jobs.query_budget import check_budget
from app.jobs.retried import Which, count_retried
from app.jobs.states import TERMINAL_JOB_STATES, ChunkState, ChunkTask, JobKind
from app.jobs.tables import Chunk, Job
from app.models.shared import choose_version


def submit_retry(
    session: Session,
    tenant_id: str,
    job_id: str,
    *,
    which: Which = "all",
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    priority: int | None = None,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
    key_id: str | None = None,
) -> Job:
    """Submit the recognition of the items of a closed job that failed, or never ended.

    What is left out is as in that job: its model version, each of its options, its priority
    and metadata; but its limits were for that run and do not bind this one.

    Raises:
        NotFoundError: no such job, or model.
        ConflictError: ``not_retryable``, ``job_not_ended``; or the model version takes no jobs.
        ForbiddenError: the model is another tenant's, who has taken back the right to run it.
        TooManyError: ``query_budget_spent``.
        InvalidInputError: ``nothing_to_retry``, ``input_not_read``.
    """
    source = get_job(session, tenant_id, job_id)
    if source.kind != JobKind.PREDICT:
        raise ConflictError(
            f"job {job_id} is of kind {source.kind}; only predict jobs can be retried, submit "
            "others again",
            code="not_retryable",
        )
    if source.state not in TERMINAL_JOB_STATES:
        raise ConflictError(
            f"job {job_id} is {source.state}; wait until it has ended, or cancel it",
            code="job_not_ended",
        )
    if _input_was_left_unread(session, source):
        raise InvalidInputError(
            f"job {job_id} ended before its whole input was read, so nobody knows all of its "
            "images; submit it again",
            code="input_not_read",
        )
    if not count_retried(source, which):
        what = {"all": "did not succeed", "failed": "failed", "unfinished": "were never touched"}[
            which
        ]
        raise InvalidInputError(f"job {job_id} has no images that {what}", code="nothing_to_retry")
    version = choose_version(
        session,
        tenant_id,
        model or str(source.model_version_id or source.shared_version_id),
        labelled=source.dataset_version_id is not None,
    )
    check_budget(session, tenant_id, key_id, version.shared, {})
    return add_job(
        session,
        tenant_id,
        JobKind.PREDICT,
        first=ChunkTask.PLAN,
        input={"retry_of": job_id, "which": which},
        options={**source.options, **(options or {})},
        dataset_version_id=source.dataset_version_id,
        key_id=key_id,
        **version.columns,
        priority=source.priority if priority is None else priority,
        limits=limits,
        metadata=source.metadata_ if metadata is None else metadata,
        retry_of=job_id,
    )


def _input_was_left_unread(session: Session, job: Job) -> bool:
    return bool(
        session.scalar(
            select(
                exists().where(
                    Chunk.job_id == job.id,
                    Chunk.tenant_id == job.tenant_id,
                    Chunk.task == ChunkTask.PLAN,
                    Chunk.state != ChunkState.DONE,
                )
            )
        )
    )
