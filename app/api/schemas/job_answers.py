"""Jobs as they are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from app.api.schemas.base import Answer, JobError, PageAnswer
from app.api.schemas.jobs import JobKindWord, JobStateWord
from app.api.schemas.limits import MaxFailedAnswer


class Named(Answer):
    """A version by id, and by the name and number that people use."""

    id: str
    name: str
    number: int


class Counts(Answer):
    """Items by how they ended; in a closed job they sum to `total`."""

    total: int
    done: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int


class Progress(Answer):
    """How far a job is."""

    fraction: float | None = Field(description="0…1; null while the size is not known yet.")
    step: int | None = Field(description="Steps or items that are done.")
    steps: int | None = Field(description="Steps or items in all.")
    unit: str | None = Field(description="What is counted: `item`, `epoch`, …")


class JobLinks(Answer):
    """Where more is to be read."""

    self: str
    results: str
    errors: str
    metrics: str
    trials: str
    events: str
    artifacts: str
    cancel: str
    pause: str
    resume: str
    retry: str


class JobAnswer(Answer):
    """What was submitted, and how far it is."""

    id: str
    kind: JobKindWord
    state: JobStateWord
    priority: int
    input: dict[str, Any] = Field(description="As accepted; inline items only by their count.")
    options: dict[str, Any] = Field(description="Complete, with every default filled in.")
    metadata: dict[str, Any]
    model_version: Named | None
    dataset_version: Named | None
    deadline_at: datetime | None
    max_failed: MaxFailedAnswer | None = Field(description="The failure budget, if one was set.")
    retry_of: str | None = Field(description="The job whose images this one tries again.")
    counts: Counts
    progress: Progress
    images_per_second: float | None
    eta_seconds: float | None
    result: dict[str, Any] | None = Field(description="What the job made.")
    error: JobError | None = Field(description="Why the job failed.")
    stop_reason: Literal["cancel", "deadline", "failures", "training_minutes"] | None = Field(
        description="Why the job was told to stop before its end."
    )
    created_at: datetime
    queued_at: datetime | None
    running_at: datetime | None
    finalizing_at: datetime | None
    paused_at: datetime | None = Field(description="When it was last paused.")
    cancelling_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    links: JobLinks


class JobPage(PageAnswer):
    """A page of jobs, newest first."""

    data: list[JobAnswer]


class ClassScore(Answer):
    """One answer of a prediction."""

    class_: str = Field(serialization_alias="class")
    score: float


class ResultAnswer(Answer):
    """How one item ended."""

    ordinal: int = Field(description="Place in the input, from 0.")
    custom_id: str
    source: str = Field(description="Object key or member name that the bytes came from.")
    state: Literal["succeeded", "failed", "skipped"]
    prediction: list[ClassScore] | None = Field(description="Best first.")
    error: JobError | None
    label: str | None = Field(description="The true label that came with the input.")
    metadata: dict[str, Any] | None


class ResultPage(PageAnswer):
    """A page of results: of a closed job in input order, of an open one as they came in."""

    data: list[ResultAnswer]
    next_cursor: str | None = Field(
        description="The next page's `after`; of an open job also once more has come in."
    )


class MetricAnswer(Answer):
    """One logged number."""

    id: str
    name: str
    step: int
    value: float | None = Field(description="Null where it was not finite.")
    recorded_at: datetime


class MetricPage(PageAnswer):
    """A page of metrics by step, then name."""

    data: list[MetricAnswer]
