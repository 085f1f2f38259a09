"""What bounds a job: a deadline, and how many of its items may fail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds that a client set for a job; none of them has to be."""

    #: The job must have ended by then, or ends expired.
    deadline_at: datetime | None = None
    #: With more failed items than this the job is stopped.
    max_failed_items: int | None = None
    #: With a larger fraction of failed items, of the final total, the job is stopped.
    max_failed_fraction: float | None = None


NO_LIMITS = Limits()


def check_deadline(deadline_at: datetime | None, now: datetime) -> None:
    """Raise InvalidInputError where the deadline has passed by ``now``, the database's time."""
    if deadline_at is not None and deadline_at <= now:
        detail = f"the deadline {deadline_at.isoformat()} has passed; it is {now.isoformat()}"
        raise InvalidInputError(
            detail, code="deadline_passed", errors=[{"pointer": "/deadline", "detail": detail}]
        )


def exceeds_budget(
    failed: int, total: int | None, max_items: int | None, max_fraction: float | None
) -> bool:
    """Whether more items failed than allowed; ``total`` is None while it is not final."""
    if max_items is not None and failed > max_items:
        return True
    # Divided rather than multiplied: 29 of 100 are exactly 0.29, and 0.29 × 100 is less than 29.
    return max_fraction is not None and bool(total) and failed / (total or 1) > max_fraction
