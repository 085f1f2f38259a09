"""What bounds a job: its deadline and its failure budget, asked for and shown."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from app.api.schemas.base import Answer, Request
from app.jobs.limits import Limits

Deadline = Annotated[
    AwareDatetime,
    Field(
        description="A moment in the future (RFC 3339, with its offset); a job that has not ended "
        "by then is stopped and ends `expired`."
    ),
]


class MaxFailed(Request):
    """A failure budget: with more failed images than this the job is stopped and fails.

    Both bounds may be set; the one that is passed first counts.
    """

    items: int | None = Field(None, ge=0, le=2**63 - 1, description="So many images may fail.")
    fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Such a part of all images of the job may fail; the whole input is read "
        "before the first of them is recognised.",
    )


class MaxFailedAnswer(Answer):
    """A job's failure budget."""

    items: int | None
    fraction: float | None


def limits_of(deadline: AwareDatetime | None, max_failed: MaxFailed | None = None) -> Limits:
    """The limits that a request spells."""
    budget = max_failed or MaxFailed()
    return Limits(
        deadline_at=deadline,
        max_failed_items=budget.items,
        max_failed_fraction=budget.fraction,
    )
