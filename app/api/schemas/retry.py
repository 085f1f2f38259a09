"""A retry as it is asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas.base import Metadata, Request
from app.api.schemas.jobs import ModelReference, PredictOptions, Priority
from app.api.schemas.limits import Deadline, MaxFailed

_FIELDS = PredictOptions.model_fields


class RetryOptions(Request):
    """Options that differ from those of the job that is retried."""

    top_k: int | None = Field(None, ge=1, le=1000, description=_FIELDS["top_k"].description)
    threshold: float | None = Field(None, ge=0, le=1, description=_FIELDS["threshold"].description)
    activation: Literal["softmax", "sigmoid"] | None = None


class RetryJob(Request):
    """Try again what a closed job did not finish well; what is left out is as in that job.

    Deadline and failure budget are not taken over.
    """

    which: Literal["failed", "unfinished", "all"] = Field(
        "all",
        description="Images that failed, those that a cancel, a deadline or a failure left "
        "untouched, or both.",
    )
    model: ModelReference | None = None
    options: RetryOptions = RetryOptions()
    priority: Priority | None = None
    deadline: Deadline | None = None
    max_failed: MaxFailed | None = None
    metadata: Metadata | None = None
