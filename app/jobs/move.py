"""Moving a job from state to state: the one place where every such move passes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.jobs.events import EVENT_COLUMNS, SILENT_STATES, add_event, event_type
from app.jobs.states import JOB_SOURCES, TERMINAL_JOB_STATES, JobState
from app.jobs.tables import Job


def move_job(
    session: Session,
    tenant_id: str,
    job_id: str,
    to: JobState,
    *,
    sources: Collection[JobState] | None = None,
    **values: Any,
) -> bool:
    """Move a job to ``to`` if its state allows that, and write the event; whether it moved.

    ``sources`` narrows the states it may come from; ``values`` are further columns.
    """
    if to in TERMINAL_JOB_STATES:
        values["ended_at"] = func.clock_timestamp()
    silent = to in SILENT_STATES
    if not silent:
        values["event_number"] = Job.event_number + 1
    moved = transition(
        session,
        Job,
        to,
        sources=JOB_SOURCES[to] if sources is None else sources,
        where=[Job.id == job_id, Job.tenant_id == tenant_id],
        values={"updated_at": func.clock_timestamp(), **values},
        returning=EVENT_COLUMNS,
    )
    if moved and not silent:
        add_event(session, tenant_id, job_id, event_type(to), moved[0])
    return bool(moved)
