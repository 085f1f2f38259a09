"""The query budget: how many items a day a key may have answered, or a model answers a tenant.

An answer teaches who reads it a little of the model, and enough of them a copy. Items are counted
as their job's plan is sealed, in that very transaction: before any of them is answered, once
whatever dies, and never given back. A retry is a job like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.clock import utc_now
from app.errors import ForbiddenError, TooManyError
from app.jobs.claim import Lease
from app.jobs.record import record_failure
from app.models.shared import SharedVersion, require_answers
from app.tenants.budgets import budget_of

_SPEND = text("SELECT refused_by, max_items, items_before FROM spend_queries(:job_id, :items)")
_WHOSE = {
    "key": "the query budget of this key",
    "model": "what the owner of the model lets this tenant ask of it",
}


def check_budget(
    session: Session,
    tenant_id: str,
    key_id: str | None,
    shared: SharedVersion | None,
    source: Mapping[str, Any],
) -> None:
    """Refuse a job that surely exceeds a budget; whether it fits, its plan finds out.

    Raises:
        TooManyError: ``query_budget_spent``.
    """
    # Of other inputs the number of items is not known before they are read.
    items = max(1, len(source.get("items") or ()))
    if key_id is not None:
        budget = budget_of(session, tenant_id, key_id)
        _check("key", budget.max_items_per_day, budget.items_today, items)
    if shared is not None:
        _check("model", shared.max_items_per_day, shared.items_today, items)


def spend_budget(session: Session, lease: Lease, items: int) -> bool:
    """Count the items of a plan that is about to be sealed; False where that failed the job.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    if lease.is_shared and not _still_granted(session, lease):
        return False
    row = session.execute(_SPEND, {"job_id": lease.job_id, "items": items}).one_or_none()
    if row is None:
        return True
    error = _spent(row.refused_by, row.max_items, row.items_before, items)
    record_failure(session, lease, error.as_dict())
    return False


def _still_granted(session: Session, lease: Lease) -> bool:
    """Whether the shared version may still be run; where not, the job has failed now.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    assert lease.model_version_id is not None
    try:
        require_answers(
            session, lease.model_version_id, labelled=lease.dataset_version_id is not None
        )
    except ForbiddenError as error:
        record_failure(session, lease, error.as_dict())
        return False
    return True


def _check(word: str, most: int | None, before: int, items: int) -> None:
    if most is not None and before + items > most:
        raise _spent(word, most, before, items)


def _spent(word: str, most: int, before: int, items: int) -> TooManyError:
    seconds = _seconds_to_midnight(utc_now())
    return TooManyError(
        f"{_WHOSE[word]} is {most} items a day, {before} were asked today, and this job has "
        f"{items} or more; a day ends at 00:00 UTC, in {seconds // 60} minutes",
        code="query_budget_spent",
        errors=[{"pointer": "max_items_per_day", "detail": f"{before} today; at most {most}"}],
        retry_after_seconds=seconds,
    )


def _seconds_to_midnight(now: datetime) -> int:
    tomorrow = (now.astimezone(UTC) + timedelta(days=1)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    return max(1, int((tomorrow - now).total_seconds()))
