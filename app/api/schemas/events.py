"""Events of a job as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from app.api.schemas.base import Answer, PageAnswer, Parameters
from app.api.schemas.job_answers import Counts

LAST_EVENT_PATTERN = r"^[0-9]{1,18}$"
_BIGGEST = 10**18 - 1

EventTypeWord = Literal[
    "job.validating",
    "job.queued",
    "job.running",
    "job.paused",
    "job.cancelling",
    "job.succeeded",
    "job.partially_succeeded",
    "job.failed",
    "job.expired",
    "job.cancelled",
    "job.progress",
]


class EventsQuery(Parameters):
    """Which events of a job."""

    after: int = Field(
        0, ge=0, le=_BIGGEST, description="Events with a higher number: the last one you have."
    )
    limit: int = Field(
        100, ge=1, le=1000, description="At most so many in a JSON page; a stream has no limit."
    )


class EventData(Answer):
    """The job as the event left it."""

    state: str
    counts: Counts
    progress: dict[str, Any] | None = Field(
        None, description="`step`, `steps` and `unit` of a job without items."
    )
    error_code: str | None = Field(None, description="Why the job failed; the job says more.")


class EventAnswer(Answer):
    """Something that happened to a job."""

    id: str = Field(description="Its number: 1, 2, 3, … of this job.")
    type: EventTypeWord
    job_id: str
    created_at: datetime
    data: EventData


class EventPage(PageAnswer):
    """A page of a job's events, oldest first; as a stream, each of them as it happens."""

    data: list[EventAnswer]
