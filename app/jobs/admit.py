"""Admission: whether a tenant may submit another job.

Counted before the job is written and without a lock, so a quota may be passed by as many jobs
as are submitted at the same moment: a lock per tenant would make them wait for each other's
COMMIT.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.clock import monotonic_seconds
from app.ids import JOB, id_before
from app.tenants.quotas import Quotas, quotas_of, too_many

#: A count far from every limit serves so long; this process's own jobs are added to it.
_COUNT_SERVES_SECONDS = 1.0
#: From this part of a limit on a count serves only as long as counting up to it may take, so
#: that small limits are exact and a tenant that runs against a large one costs little.
_NEAR = 0.9
_NEAR_SERVES_SECONDS_PER_JOB = 1e-5
#: When a tenant with too many open jobs may ask again.
_JOBS_RETRY_SECONDS = 5
#: The window of submissions, and how much older ids are looked at: hosts' clocks differ.
_WINDOW_SECONDS, _CLOCKS_DIFFER_SECONDS = 60, 30

_COUNT = text(
    """
    SELECT (SELECT count(*) FROM jobs
            -- In the words of the index, which then is all that is read.
            WHERE tenant_id = :tenant_id AND state NOT IN ('succeeded', 'partially_succeeded',
                'failed', 'expired', 'cancelled')) AS open_jobs,
           (SELECT count(*) FROM jobs
            WHERE tenant_id = :tenant_id AND id > :since_id
              AND created_at > now() - make_interval(secs => :window)) AS submitted
    """
)
# When enough of the last minute's submissions will be a minute old.
_FREE_AGAIN = text(
    """
    SELECT ceil(extract(epoch FROM created_at - now()) + :window)::int
    FROM jobs
    WHERE tenant_id = :tenant_id AND id > :since_id
      AND created_at > now() - make_interval(secs => :window)
    ORDER BY created_at DESC
    OFFSET :limit - 1 LIMIT 1
    """
)


@dataclass(slots=True)
class _Count:
    at: float
    quotas: Quotas
    open_jobs: int
    submitted: int
    #: When there is room for a submission again, where it is those that are too many.
    free_at: float = 0

    @property
    def serves(self) -> bool:
        seconds = _COUNT_SERVES_SECONDS
        for number, limit in (
            (self.open_jobs, self.quotas.max_open_jobs),
            (self.submitted, self.quotas.max_submissions_per_minute),
        ):
            if number >= _NEAR * limit - 1:
                seconds = min(seconds, limit * _NEAR_SERVES_SECONDS_PER_JOB)
        return monotonic_seconds() - self.at < seconds


class Admission:
    """Counts the jobs of tenants for one API process; threads share it."""

    def __init__(self, defaults: Quotas) -> None:
        self._defaults = defaults
        self._counts: dict[str, _Count] = {}
        self._lock = threading.Lock()

    def quotas(self, session: Session, tenant_id: str) -> Quotas:
        """The tenant's limits."""
        return quotas_of(session, tenant_id, self._defaults)

    def admit_job(self, session: Session, tenant_id: str) -> None:
        """Let the tenant submit one job more.

        Raises:
            TooManyError: ``too_many_jobs`` or ``too_many_submissions``.
        """
        with self._lock:
            count = self._counts.get(tenant_id)
        if count is None or not count.serves:
            count = self._count(session, tenant_id)
        with self._lock:
            self._counts[tenant_id] = count
            _check(count)
            count.open_jobs += 1
            count.submitted += 1

    def _count(self, session: Session, tenant_id: str) -> _Count:
        quotas = self.quotas(session, tenant_id)
        words = _window(tenant_id)
        row = session.execute(_COUNT, words).one()
        now = monotonic_seconds()
        count = _Count(now, quotas, row.open_jobs, row.submitted)
        if row.submitted >= quotas.max_submissions_per_minute:
            words["limit"] = quotas.max_submissions_per_minute
            count.free_at = now + (session.scalar(_FREE_AGAIN, words) or 1)
        return count


def count_jobs(session: Session, tenant_id: str) -> tuple[int, int]:
    """How many open jobs the tenant has, and how many it submitted within a minute."""
    row = session.execute(_COUNT, _window(tenant_id)).one()
    return row.open_jobs, row.submitted


def _check(count: _Count) -> None:
    quotas = count.quotas
    if count.open_jobs >= quotas.max_open_jobs:
        raise too_many(
            "too_many_jobs",
            "max_open_jobs",
            quotas.max_open_jobs,
            f"{count.open_jobs} open jobs",
            "wait until some have ended, or cancel some",
            retry_after_seconds=_JOBS_RETRY_SECONDS,
        )
    if count.submitted >= quotas.max_submissions_per_minute:
        raise too_many(
            "too_many_submissions",
            "max_submissions_per_minute",
            quotas.max_submissions_per_minute,
            f"submitted {count.submitted} jobs within a minute",
            "submit more slowly, or more images with each job",
            retry_after_seconds=max(1, round(count.free_at - monotonic_seconds())),
        )


def _window(tenant_id: str) -> dict[str, object]:
    return {
        "tenant_id": tenant_id,
        "since_id": id_before(JOB, _WINDOW_SECONDS + _CLOCKS_DIFFER_SECONDS),
        "window": _WINDOW_SECONDS,
    }
