"""What only a broken rule brings about: counters that are off, jobs that nothing would close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, exists, func, select, text, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.apart import each_apart
from app.jobs.finalize import add_closing_chunk, close_job, fail_job
from app.jobs.states import (
    CLOSING_TASKS,
    ITEM_KINDS,
    JOB_SOURCES,
    TERMINAL_JOB_STATES,
    ChunkState,
    ItemState,
    JobKind,
    JobState,
)
from app.jobs.tables import Chunk, Item, Job
from app.log import get_logger

log = get_logger(__name__)

#: Jobs handled in one sweep.
_BATCH = 200
#: Jobs counted in one statement: a large one takes a moment.
_RECOUNT_BATCH = 10

# One statement, so one snapshot: a recording that commits meanwhile is in all numbers or in none.
_RECOUNT = text(
    """
    SELECT j.id, j.tenant_id, j.total, j.succeeded, j.failed, j.skipped,
           j.cancelled + j.expired AS untouched, j.kind,
           i.succeeded AS succeeded_found, i.failed AS failed_found, i.skipped AS skipped_found,
           c.waiting
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'skipped') AS skipped
        FROM items WHERE job_id = j.id
    ) i
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(hi - lo), 0) AS waiting
        FROM chunks WHERE job_id = j.id AND state IN ('pending', 'running')
    ) c
    WHERE j.state = ANY(:states) AND j.id > :after
    ORDER BY j.id
    LIMIT :limit
    """
)
_OPEN = [state.value for state in JobState if state not in TERMINAL_JOB_STATES]


@dataclass(frozen=True, slots=True)
class Recount:
    """What one step of the rotation over the open jobs found."""

    #: Jobs that were counted.
    counted: int
    #: Jobs whose counters were off and are right now.
    repaired: int
    #: Jobs of which items are missing or too many: nobody can put that right.
    torn: int
    #: The last job looked at, for the next step; None at the end of the rotation.
    after: str | None


def recount_jobs(db: Database, after: str | None = None) -> Recount:
    """Compare the counters of the next few open jobs with their items and waiting ranges.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        # Where few giant jobs have nearly all items, the planner takes each job for a giant and
        # would read the whole table for every one of them.
        session.execute(text("SET LOCAL enable_seqscan = off"))
        rows = session.execute(
            _RECOUNT, {"states": _OPEN, "after": after or "", "limit": _RECOUNT_BATCH}
        ).all()
    off = [row for row in rows if _counters(row) != _found(row)]
    torn = [row for row in rows if _is_torn(row)]
    for row in torn:
        log.error("job_torn", job=row.id, total=row.total, waiting=row.waiting, found=_found(row))
    return Recount(
        counted=len(rows),
        repaired=sum(_repair(db, row) for row in off),
        torn=len(torn),
        after=rows[-1].id if len(rows) == _RECOUNT_BATCH else None,
    )


def _counters(row: Any) -> dict[str, int]:
    return {state.value: getattr(row, state.value) for state in ItemState}


def _found(row: Any) -> dict[str, int]:
    return {state.value: getattr(row, f"{state.value}_found") for state in ItemState}


def _is_torn(row: Any) -> bool:
    """Whether items recorded, waiting and left untouched are not the job's total.

    Only where items wait in chunks: an ingest has one chunk without a range.
    """
    if row.kind not in ITEM_KINDS:
        return False
    return bool(sum(_found(row).values()) + row.waiting + row.untouched != row.total)


def _repair(db: Database, row: Any) -> int:
    """Set the counters to what the items say, if that is still so under the job's lock."""
    with db.system() as session:
        lock = select(Job.id).where(Job.id == row.id, Job.state.in_(_OPEN)).with_for_update()
        if session.execute(lock).first() is None:
            return 0
        # A recording holds the same lock until its end, so now items and counters belong together.
        job = session.execute(
            select(Job.succeeded, Job.failed, Job.skipped).where(Job.id == row.id)
        ).one()
        found = _count_items(session, row.id)
        before = _counters(job)
        if before == found:
            return 0
        log.error("job_drifted", job=row.id, counters=before, found=found)
        session.execute(
            update(Job)
            .where(Job.id == row.id)
            .values(**found, updated_at=func.clock_timestamp())
            .execution_options(synchronize_session=False)
        )
        return 1


def _count_items(session: Session, job_id: str) -> dict[str, int]:
    counted = {
        row.state: row.items
        for row in session.execute(
            select(Item.state, func.count().label("items"))
            .where(Item.job_id == job_id)
            .group_by(Item.state)
        )
    }
    return {state.value: counted.get(state.value, 0) for state in ItemState}


def close_forgotten_jobs(db: Database) -> int:
    """Close open jobs that have no work left; how many: 0 unless a rule was broken.

    Raises:
        UnavailableError: the database does not answer.
    """
    return sum(each_apart(_forgotten(db), lambda row: _close_forgotten(db, row.tenant_id, row.id)))


def _forgotten(db: Database) -> Sequence[Row[str, str]]:
    """Open jobs without an open chunk: the last record closes a job, so there are none."""
    with db.system() as session:
        return session.execute(
            select(Job.id, Job.tenant_id).where(*_has_no_work_left()).limit(_BATCH)
        ).all()


def _has_no_work_left() -> list[ColumnElement[bool]]:
    return [
        Job.state.in_(JOB_SOURCES[JobState.CANCELLING]),
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
            select(Job.kind, Job.state, Job.total, Job.sealed_at).where(
                Job.id == job_id, *_has_no_work_left()
            )
        ).first()
        if job is None:
            return 0
        counted = _count_items(session, job_id)
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
            .values(counted | {"cancelled": 0, "expired": 0})
            .execution_options(synchronize_session=False)
        )
        task = CLOSING_TASKS.get(JobKind(job.kind))
        if job.state == JobState.FINALIZING and task is not None:
            add_closing_chunk(session, tenant_id, job_id, task)
        else:
            close_job(session, tenant_id, job_id)
        return 1
