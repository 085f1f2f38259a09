"""The outbox: one row for each thing that happened to a job, written with the change itself.

An event is there if and only if its change was committed. Its number is taken in the UPDATE
of the job's row, whose lock lasts to COMMIT: per job the numbers have no holes, and whoever has
seen number n has missed none before it.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Text, func, select
from sqlalchemy import text as sql
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, mapped_column

from app.db.base import Base, Id, Json, Moment, of_same_tenant, one_of
from app.errors import NotFoundError
from app.jobs.progress import counts
from app.jobs.states import TERMINAL_JOB_STATES, EventState, JobState
from app.jobs.tables import Job

#: The type of a recording that moved the counts and not the state.
PROGRESS = "job.progress"


def event_type(state: JobState) -> str:
    """The type of the event that a job reached ``state``."""
    return f"job.{state.value}"


#: Most jobs pass ``finalizing`` inside one transaction, and of an evaluation the end tells more.
SILENT_STATES = frozenset({JobState.FINALIZING})
#: Every type there is, in the order of the states.
EVENT_TYPES = (*(event_type(state) for state in JobState if state not in SILENT_STATES), PROGRESS)
#: A job has one of these, and it is the last of its events.
TERMINAL_EVENT_TYPES = frozenset(map(event_type, TERMINAL_JOB_STATES))

#: What the UPDATE that takes a number returns: the event tells of the row as written.
EVENT_COLUMNS: tuple[InstrumentedAttribute[Any], ...] = (
    Job.event_number,
    Job.state,
    Job.total,
    Job.succeeded,
    Job.failed,
    Job.skipped,
    Job.cancelled,
    Job.expired,
    Job.progress,
    Job.error,
)


class Event(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    job_id: Mapped[Id] = mapped_column(primary_key=True)
    #: 1, 2, 3, … of this job.
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[Id]
    type: Mapped[str] = mapped_column(Text)
    #: State, counts, and where there are any, steps and the error's code.
    data: Mapped[Json]
    #: Whether webhooks have had it; see :class:`EventState`.
    state: Mapped[str] = mapped_column(Text)
    #: When it was written; that of the transaction would put neighbours out of order.
    created_at: Mapped[Moment] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (
        of_same_tenant("job_id", "jobs", ondelete="CASCADE"),
        CheckConstraint(one_of("state", EventState), name="state"),
        Index("ix_events_pending", "created_at", postgresql_where=sql("state = 'pending'")),
        Index("ix_events_created_at", "created_at"),
    )


#: Writes an event from the values of :func:`event_values`; a recording joins it to its own
#: INSERT, which saves a round trip where it counts.
INSERT_EVENT = """
    INSERT INTO events (job_id, number, tenant_id, type, data, state)
    VALUES (:job_id, :event_number, :tenant_id, :event_type, CAST(:event_data AS jsonb), 'pending')
"""


def add_event(session: Session, tenant_id: str, job_id: str, type_: str, job: Any) -> None:
    """Write an event; ``job`` has :data:`EVENT_COLUMNS` as the caller has just written them."""
    session.execute(sql(INSERT_EVENT), event_values(tenant_id, job_id, type_, job))


def event_values(tenant_id: str, job_id: str, type_: str, job: Any) -> dict[str, Any]:
    """The values that :data:`INSERT_EVENT` takes."""
    data: dict[str, Any] = {"state": job.state, "counts": counts(job)}
    if job.progress is not None:
        data["progress"] = job.progress
    if job.error is not None:
        data["error_code"] = job.error.get("code")
    return {
        "job_id": job_id,
        "tenant_id": tenant_id,
        "event_number": job.event_number,
        "event_type": type_,
        "event_data": json.dumps(data, separators=(",", ":")),
    }


def has_ended(session: Session, tenant_id: str, job_id: str) -> bool:
    """Whether the job will have no further event. Raises NotFoundError where there is no job."""
    ended = session.scalar(
        select(Job.ended_at.is_not(None)).where(Job.id == job_id, Job.tenant_id == tenant_id)
    )
    if ended is None:
        raise NotFoundError(f"no job {job_id}", code="job_not_found")
    return ended


def page_events(
    session: Session, tenant_id: str, job_id: str, *, after: int, limit: int
) -> tuple[list[Event], bool]:
    """Events of a job with numbers above ``after``, and whether more follow."""
    rows = list(
        session.scalars(
            select(Event)
            .where(Event.job_id == job_id, Event.tenant_id == tenant_id, Event.number > after)
            .order_by(Event.number)
            .limit(limit + 1)
        )
    )
    return rows[:limit], len(rows) > limit
