"""A plan within its tenant's quota of open items: it waits for others, or is too large itself."""

from __future__ import annotations

import math

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.clock import monotonic_seconds
from app.db.session import Database
from app.errors import InvalidInputError
from app.jobs.claim import Lease, release_chunk
from app.jobs.record import record_failure
from app.log import get_logger
from app.settings import Settings
from app.tenants.quotas import Quotas, quotas_of

log = get_logger(__name__)

#: Between two looks at whether there is room again.
_WAIT_SECONDS = 5.0
#: A count below this part of the limit serves for a while: so long for each item of the limit,
#: which is less than plans need to fill the rest, and a second at most. Small limits are exact.
_NEAR = 0.9
_SERVES_SECONDS_PER_ITEM, _SERVES_SECONDS = 1e-7, 1.0

#: Tenant → when this process last counted its open items, and how many there were. A thousand
#: small jobs are planned in a moment, and each count looks at all of them.
_counted: dict[str, tuple[float, int]] = {}

# A plan waits for sealed jobs, which get on, and for older plans: so no two wait for each other.
_OPEN_BEFORE = text(
    """
    SELECT coalesce(sum(total - succeeded - failed - skipped - cancelled - expired), 0)::bigint
    FROM jobs
    WHERE tenant_id = :tenant_id AND state IN ('validating', 'queued', 'running', 'finalizing',
        'paused', 'cancelling')
      AND id <> :job_id AND (sealed_at IS NOT NULL OR id < :job_id)
    """
)


class ItemQuota:
    """How many items a plan may add to those of its tenant that have not ended."""

    def __init__(self, db: Database, lease: Lease, settings: Settings) -> None:
        self._db = db
        self._lease = lease
        with db.tenant(lease.tenant_id) as session:
            quotas = quotas_of(session, lease.tenant_id, Quotas.from_settings(settings))
        self._limit = quotas.max_open_items

    def must_wait(self, planned: int) -> bool:
        """Whether others have so many that no more of this job's items fit beside ``planned``.

        If so the chunk is let go of, and is due again after a while. True as well where the job
        by itself has too many, and has failed now.
        """
        lease = self._lease
        if self._has_plenty(planned):
            return False
        words = {"tenant_id": lease.tenant_id, "job_id": lease.job_id}
        with self._db.tenant(lease.tenant_id) as session:
            if self.fail_if_too_large(session, planned):
                return True
            before = int(session.scalar(_OPEN_BEFORE, words) or 0)
            # With its own, which are others' to whoever looks next.
            _counted[lease.tenant_id] = (monotonic_seconds(), before + planned)
            if not before or before + planned < self._limit:
                return False
            release_chunk(session, lease, delay_seconds=_WAIT_SECONDS)
        log.info("plan_waits_for_quota", open_items=before, limit=self._limit)
        return True

    def _has_plenty(self, planned: int) -> bool:
        """Whether a count made a moment ago says that there is room for more than this."""
        at, before = _counted.get(self._lease.tenant_id, (-math.inf, 0))
        serves = min(_SERVES_SECONDS, self._limit * _SERVES_SECONDS_PER_ITEM)
        return monotonic_seconds() - at < serves and before + planned < _NEAR * self._limit

    def fail_if_too_large(self, session: Session, items: int) -> bool:
        """Fail a job that alone has more items than the tenant may have; whether it was one.

        Raises:
            FencedError: the lease was lost; nothing is written.
        """
        if items <= self._limit:
            return False
        error = InvalidInputError(
            f"the job has more than {self._limit} items, which is what this tenant may have open "
            "at once (quota max_open_items); submit it in parts",
            code="too_many_items",
        )
        record_failure(session, self._lease, error.as_dict())
        return True
