"""How a job ends: once, with counts that sum to its total."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, func, insert, select
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.ids import CHUNK, new_id
from app.jobs.conclude import conclude_search
from app.jobs.move import move_job
from app.jobs.speeds import add_speeds
from app.jobs.states import (
    CHUNK_SOURCES,
    CLOSING_TASKS,
    JOB_SOURCES,
    PLANNED_KINDS,
    ChunkState,
    ChunkTask,
    JobKind,
    JobState,
    StopReason,
)
from app.jobs.tables import Chunk, Job
from app.models.register import fail_version
from app.points import reach
from app.queues.names import QUEUE_OF_TASK
from app.uploads.settle import settle_upload


def close_job(session: Session, tenant_id: str, job_id: str) -> None:
    """Close a job whose last item is recorded; the caller's transaction holds the job's row.

    Where its kind has closing work that is begun, by one chunk more, and that chunk's record ends
    the job; else it ends now. Nothing is left to measure where every item failed.
    """
    if not move_job(session, tenant_id, job_id, JobState.FINALIZING):
        return
    reach("close")
    job = session.execute(select(Job.kind, Job.total, Job.failed).where(Job.id == job_id)).one()
    task = CLOSING_TASKS.get(JobKind(job.kind))
    if task is not None and job.failed < job.total:
        add_closing_chunk(session, tenant_id, job_id, task)
    else:
        end_job(session, tenant_id, job_id)


def add_closing_chunk(session: Session, tenant_id: str, job_id: str, task: ChunkTask) -> None:
    """The chunk of a job's closing work; it has no items, so no count changes."""
    session.execute(
        insert(Chunk).values(
            id=new_id(CHUNK),
            tenant_id=tenant_id,
            job_id=job_id,
            task=task,
            queue=QUEUE_OF_TASK[task],
            state=ChunkState.PENDING,
        )
    )


def end_job(session: Session, tenant_id: str, job_id: str) -> None:
    """End a finalizing job: succeeded, partially succeeded or failed, by its counts.

    A search has succeeded where one of its trials has: the others are why it was a search.
    """
    job = session.execute(select(Job.kind, Job.total, Job.failed).where(Job.id == job_id)).one()
    if job.kind == JobKind.SEARCH:
        _end_search(session, tenant_id, job_id)
        return
    if job.total and job.failed == job.total:
        error = {
            "code": "all_items_failed",
            "detail": f"all {job.total} items failed; see the job's errors",
        }
        move_job(session, tenant_id, job_id, JobState.FAILED, error=error)
        outcome = JobState.FAILED
    elif job.failed:
        move_job(session, tenant_id, job_id, JobState.PARTIALLY_SUCCEEDED)
        outcome = JobState.PARTIALLY_SUCCEEDED
    else:
        move_job(session, tenant_id, job_id, JobState.SUCCEEDED)
        outcome = JobState.SUCCEEDED
    _settle(session, tenant_id, job_id, outcome)


def _end_search(session: Session, tenant_id: str, job_id: str) -> None:
    outcome = JobState.SUCCEEDED
    if conclude_search(session, tenant_id, job_id, is_whole=True):
        move_job(session, tenant_id, job_id, outcome)
    else:
        outcome = JobState.FAILED
        error = {
            "code": "no_trial_finished",
            "detail": "no trial of the search came to its end, so there is no network to register; "
            "the job's trials say why",
        }
        move_job(session, tenant_id, job_id, outcome, error=error)
    _settle(session, tenant_id, job_id, outcome)


def fail_job(session: Session, tenant_id: str, job_id: str, error: dict[str, Any]) -> None:
    """End a job that cannot be done at all; what had finished stays, the rest is cancelled.

    ``error`` is :meth:`DarkroomError.as_dict`. Chunks that others hold are fenced by the
    cancel: their records find no running chunk. A caller that holds the lock of one chunk
    has called :func:`lock_open_chunks` before it took that.
    """
    transition(
        session,
        Chunk,
        ChunkState.CANCELLED,
        sources=CHUNK_SOURCES[ChunkState.CANCELLED],
        where=[Chunk.job_id == job_id, Chunk.tenant_id == tenant_id],
        values={"lease_until": None, "worker_id": None},
    )
    moved = move_job(
        session,
        tenant_id,
        job_id,
        JobState.FAILED,
        # A job that was told to stop ends as its reason says.
        sources=JOB_SOURCES[JobState.FAILED] - {JobState.CANCELLING},
        error=error,
        **_rest_is("cancelled"),
    )
    if moved:
        _settle(session, tenant_id, job_id, JobState.FAILED)


def lock_open_chunks(session: Session, tenant_id: str, job_id: str) -> None:
    """Lock every chunk of a job that has not ended, always in the same order.

    Whoever is about to fail the job touches all of them: of two that each held one already,
    both would wait for the other's.
    """
    session.execute(
        select(Chunk.id)
        .where(
            Chunk.job_id == job_id,
            Chunk.tenant_id == tenant_id,
            Chunk.state.in_([ChunkState.PENDING, ChunkState.RUNNING]),
        )
        .order_by(Chunk.id)
        .with_for_update()
    )


def close_stopped_if_let_go(session: Session, tenant_id: str, job_id: str) -> bool:
    """Close a job that was told to stop, once no worker holds one of its chunks.

    It ends as its ``stop_reason`` says. Called by every worker that lets go and by the
    sweeper. Whoever calls last sees the others' chunks ended, because each has locked the
    job's row before looking.
    """
    job = session.execute(
        select(
            Job.stop_reason, Job.failed, Job.total, Job.max_failed_items, Job.max_failed_fraction
        )
        .where(Job.id == job_id)
        .with_for_update()
    ).one()
    still_open = session.scalar(
        select(
            exists().where(
                Chunk.job_id == job_id,
                Chunk.state.in_([ChunkState.PENDING, ChunkState.RUNNING]),
            )
        )
    )
    if still_open:
        return False
    match job.stop_reason:
        case StopReason.DEADLINE:
            outcome, values = JobState.EXPIRED, _rest_is("expired")
        case StopReason.FAILURES:
            outcome, values = JobState.FAILED, _rest_is("cancelled")
            values["error"] = _too_many_failures(job)
        case StopReason.TRAINING_MINUTES:
            # Its error was written with the reason, by whoever knew the quota.
            outcome, values = JobState.FAILED, _rest_is("cancelled")
        case _:
            outcome, values = JobState.CANCELLED, _rest_is("cancelled")
    moved = move_job(session, tenant_id, job_id, outcome, sources=[JobState.CANCELLING], **values)
    if moved:
        _settle(session, tenant_id, job_id, outcome)
    return moved


def stopped_as(reason: str | None) -> tuple[ChunkState, str]:
    """State of the chunks that a stop ends, and the job's counter of their untouched items."""
    if reason == StopReason.DEADLINE:
        return ChunkState.EXPIRED, "expired"
    return ChunkState.CANCELLED, "cancelled"


def _too_many_failures(job: Any) -> dict[str, Any]:
    allowed = " and ".join(
        text
        for limit, text in (
            (job.max_failed_items, f"{job.max_failed_items} items"),
            (job.max_failed_fraction, f"a fraction of {job.max_failed_fraction}"),
        )
        if limit is not None
    )
    return {
        "code": "too_many_failures",
        "detail": (
            f"{job.failed} of {job.total} items failed, more than the failure budget of "
            f"{allowed} allows; see the job's errors. What had finished is kept."
        ),
    }


def _rest_is(counter: str) -> dict[str, Any]:
    """Columns of a job that ends early: its total is what was found, the counts sum to it."""
    column = getattr(Job, counter)
    ended = Job.succeeded + Job.failed + Job.skipped + Job.cancelled + Job.expired
    return {
        "sealed_at": func.coalesce(Job.sealed_at, func.now()),
        counter: column + Job.total - ended,
    }


def _settle(session: Session, tenant_id: str, job_id: str, outcome: JobState) -> None:
    """Move what the job was making along with it: its version, its upload, its version's speed."""
    kind = session.scalar(select(Job.kind).where(Job.id == job_id))
    done = outcome in (JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED)
    if kind in PLANNED_KINDS and done:
        add_speeds(session, tenant_id, job_id)
    if kind == JobKind.INGEST:
        settle_upload(session, tenant_id, job_id, usable=done)
    elif kind == JobKind.SEARCH and not done:
        if not conclude_search(session, tenant_id, job_id, is_whole=False):
            fail_version(session, tenant_id, job_id)
    elif kind in (JobKind.IMPORT, JobKind.FINETUNE) and not done:
        fail_version(session, tenant_id, job_id)
