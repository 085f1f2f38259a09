"""How much of its quotas a tenant uses now, by the names of the quotas."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.jobs.admit import count_jobs
from app.jobs.training_time import used_seconds
from app.uploads.room import stored_bytes

_OPEN_ITEMS = text(
    """
    SELECT coalesce(sum(total - succeeded - failed - skipped - cancelled - expired), 0)::bigint
    FROM jobs
    WHERE tenant_id = :tenant_id AND state NOT IN ('succeeded', 'partially_succeeded',
        'failed', 'expired', 'cancelled')
    """
)


def read_usage(session: Session, tenant_id: str) -> dict[str, int]:
    """What counts against each field of :class:`app.tenants.quotas.Quotas`."""
    open_jobs, submitted = count_jobs(session, tenant_id)
    return {
        "max_open_jobs": open_jobs,
        "max_open_items": int(session.scalar(_OPEN_ITEMS, {"tenant_id": tenant_id}) or 0),
        "max_stored_bytes": stored_bytes(session, tenant_id),
        "max_submissions_per_minute": submitted,
        "max_training_minutes": int(used_seconds(session, tenant_id) // 60),
    }
