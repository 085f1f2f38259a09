"""How long workers trained for a tenant within the last 30 days, and whether it may have more.

Every attempt counts, failed and killed ones too: they took the worker from others. A trigger of the
database writes an attempt's time as its chunk leaves ``running`` (migrations 0024 and 0032).
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.errors import TooManyError
from app.tenants.quotas import Quotas, too_many

#: The window that the quota holds for; what has ended before is forgotten.
WINDOW = timedelta(days=30)
CODE = "too_many_training_minutes"
QUOTA = "max_training_minutes"
#: When to come again where what is in work alone is too much.
_RETRY_SECONDS = 3600

# What is in work counts as well, and no longer than its lease: nobody may be left to end it.
_USED = text(
    """
    SELECT (SELECT coalesce(sum(extract(epoch FROM
                ended_at - greatest(began_at, now() - make_interval(secs => :window)))), 0)
            FROM training_time
            WHERE tenant_id = :tenant_id
              AND ended_at > now() - make_interval(secs => :window))
         + (SELECT coalesce(sum(extract(epoch FROM
                greatest(least(now(), lease_until) - running_at, interval '0'))), 0)
            FROM chunks
            WHERE tenant_id = :tenant_id AND state = 'running'
              AND task IN ('finetune', 'trial'))
    """
)
# The spans that will leave the window, in the order in which they do.
_SPANS = text(
    """
    SELECT extract(epoch FROM ended_at - start)::float8 AS seconds,
           extract(epoch FROM start + make_interval(secs => :window) - now())::float8 AS leaves_in
    FROM training_time,
         greatest(began_at, now() - make_interval(secs => :window)) AS start
    WHERE tenant_id = :tenant_id AND ended_at > now() - make_interval(secs => :window)
    ORDER BY start
    """
)


def used_seconds(session: Session, tenant_id: str) -> float:
    """Seconds that workers trained for the tenant within the window, up to now."""
    return float(session.scalar(_USED, _words(tenant_id)) or 0)


def check_training_minutes(session: Session, tenant_id: str, quotas: Quotas) -> None:
    """Let the tenant submit another training.

    Raises:
        TooManyError: ``too_many_training_minutes``.
    """
    limit = quotas.max_training_minutes
    used = used_seconds(session, tenant_id)
    if used < limit * 60:
        return
    raise too_many(
        CODE,
        QUOTA,
        limit,
        f"trained for {math.floor(used / 60)} minutes within {WINDOW.days} days",
        "wait until the oldest of them are so long ago, or ask whoever runs this service for more",
        retry_after_seconds=_free_in(session, tenant_id, used - limit * 60),
    )


def quota_used_up(minutes: int) -> TooManyError:
    """Why a training under way was stopped."""
    return TooManyError(
        f"this tenant's quota {QUOTA} of {minutes} within {WINDOW.days} days is used up; the "
        "metrics of the epochs that had ended and the best network so far are kept",
        code=CODE,
        errors=[{"pointer": QUOTA, "detail": f"at most {minutes} minutes"}],
    )


def _free_in(session: Session, tenant_id: str, excess_seconds: float) -> int:
    """Seconds until so much, and a little, has left the window, if nothing is added."""
    for seconds, leaves_in in session.execute(_SPANS, _words(tenant_id)):
        if seconds > excess_seconds:
            return max(1, math.ceil(float(leaves_in) + excess_seconds))
        excess_seconds -= float(seconds)
    return _RETRY_SECONDS


def _words(tenant_id: str) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "window": WINDOW.total_seconds()}
