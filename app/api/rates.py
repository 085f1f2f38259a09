"""Rates: requests of a tenant, and failed authentications of an address, within a minute.

Counted in Redis, so that all API processes count together. Redis is a doorbell and may be away,
slow or full: then this process counts by itself, under the same limits. So requests are neither let
through unbounded nor refused, and none waits longer than :data:`PATIENCE_SECONDS` for a count.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.clock import monotonic_seconds
from app.errors import TooManyError
from app.log import get_logger
from app.queues.address import redis_py_url
from app.settings import Settings

T = TypeVar("T")

#: Before every key of ours in Redis; each has a time to live of a minute.
PREFIX = "darkroom:rates"
#: One answer of Redis may take so long.
PATIENCE_SECONDS = 0.25
#: A Redis that failed is asked again after so long, by one request while the others go on.
AGAIN_SECONDS = 5.0
#: Requests are drawn from Redis by so many parts of the limit, to be used up here: a poll then
#: seldom asks it. What is drawn and not used in time is lost to the tenant.
_DRAWS = 1000
_DRAWN_SERVES_SECONDS = 5.0
#: Tenants or addresses that are remembered here, at most.
_MOST = 10_000

log = get_logger(__name__)


class Rates:
    """Counts for one API process; threads share it. Contacts nothing until it counts."""

    def __init__(self, redis_url: str, *, max_requests: int, max_failures: int) -> None:
        self._shared = FixedWindowRateLimiter(
            RedisStorage(
                redis_py_url(redis_url),
                key_prefix=PREFIX,
                socket_timeout=PATIENCE_SECONDS,
                socket_connect_timeout=PATIENCE_SECONDS,
                # Its own three tries with pauses would take seconds.
                retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
            )
        )
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(max_requests, namespace="requests")
        self._failures = RateLimitItemPerMinute(max_failures, namespace="failures")
        self._draw = max(1, max_requests // _DRAWS)
        self._lock = threading.Lock()
        #: Tenant → requests drawn and not used yet, and until when they serve.
        self._drawn: dict[str, tuple[int, float]] = {}
        #: Tenant or address → until when it is refused.
        self._refused: dict[str, float] = {}
        self._is_away = False
        self._ask_again_at = -math.inf

    @classmethod
    def from_settings(cls, settings: Settings) -> Rates:
        """The limits that the settings name."""
        return cls(
            settings.redis_url.get_secret_value(),
            max_requests=settings.max_requests_per_minute,
            max_failures=settings.max_failed_authentications_per_minute,
        )

    def admit_request(self, tenant_id: str) -> None:
        """Let the tenant make one request more.

        Raises:
            TooManyError: ``too_many_requests``.
        """
        now = monotonic_seconds()
        with self._lock:
            left, until = self._drawn.get(tenant_id, (0, 0.0))
            if left > 0 and now < until:
                self._drawn[tenant_id] = left - 1, until
                return
        self._check_refused(tenant_id, self._too_many_requests)
        if not self._count(lambda limiter: limiter.hit(self._requests, tenant_id, cost=self._draw)):
            raise self._refuse(self._requests, tenant_id, self._too_many_requests)
        if self._draw > 1:
            with self._lock:
                _make_room(self._drawn)
                self._drawn[tenant_id] = self._draw - 1, now + _DRAWN_SERVES_SECONDS

    def admit_stranger(self, address: str | None) -> None:
        """Let an address try a key that is not known to be good.

        Raises:
            TooManyError: ``too_many_requests``: too many of its keys were wrong.
        """
        self._check_refused(_place(address), self._too_many_failures)

    def note_failure(self, address: str | None) -> None:
        """Count a key that was missing or wrong; over the limit its address is refused for a while.

        Raises:
            TooManyError: ``too_many_requests``: this one was too many.
        """
        place = _place(address)
        if not self._count(lambda limiter: limiter.hit(self._failures, place)):
            raise self._refuse(self._failures, place, self._too_many_failures)

    def _check_refused(self, name: str, error: Callable[[float], TooManyError]) -> None:
        left = self._refused.get(name, 0.0) - monotonic_seconds()
        if left > 0:
            raise error(left)

    def _refuse(
        self, item: RateLimitItemPerMinute, name: str, error: Callable[[float], TooManyError]
    ) -> TooManyError:
        """Remember until when the name is refused, so that a flood asks Redis no more."""
        reset = self._count(lambda limiter: limiter.get_window_stats(item, name).reset_time)
        left = min(max(reset - time.time(), 1.0), float(item.get_expiry()))
        with self._lock:
            _make_room(self._refused)
            self._refused[name] = monotonic_seconds() + left
        log.warning("rate_passed", limit=item.namespace, name=name, seconds=round(left))
        return error(left)

    def _too_many_requests(self, left_seconds: float) -> TooManyError:
        return _too_many(
            "max_requests_per_minute",
            f"this tenant made more than {self._requests.amount} requests within a minute",
            left_seconds,
        )

    def _too_many_failures(self, left_seconds: float) -> TooManyError:
        return _too_many(
            "max_failed_authentications_per_minute",
            f"from this address more than {self._failures.amount} requests within a minute had no "
            "valid key",
            left_seconds,
        )

    def _count(self, ask: Callable[[FixedWindowRateLimiter], T]) -> T:
        """Ask Redis, or this process's own counts where Redis does not answer in time."""
        if not self._may_ask():
            return ask(self._own)
        try:
            answer = ask(self._shared)
        except (RedisError, OSError) as error:
            if not self._is_away:
                log.warning("rates_counted_apart", error=type(error).__name__)
            self._is_away, self._ask_again_at = True, monotonic_seconds() + AGAIN_SECONDS
            return ask(self._own)
        if self._is_away:
            self._is_away = False
            log.info("rates_counted_together")
        return answer

    def _may_ask(self) -> bool:
        if not self._is_away:
            return True
        with self._lock:
            now = monotonic_seconds()
            if now < self._ask_again_at:
                return False
            # The others do not wait for what this one finds.
            self._ask_again_at = now + AGAIN_SECONDS
            return True


def _too_many(limit: str, detail: str, left_seconds: float) -> TooManyError:
    """The refusal of a request that came too soon, and when to come again."""
    return TooManyError(
        f"{detail}; come again later",
        code="too_many_requests",
        errors=[{"pointer": limit, "detail": detail}],
        retry_after_seconds=max(1, math.ceil(left_seconds)),
    )


def _place(address: str | None) -> str:
    """Who counts as one: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False).network_address)
    return str(found)


def _make_room(kept: dict[str, T]) -> None:
    """Forget all where there are too many: the worst is that something is counted anew."""
    if len(kept) >= _MOST:
        kept.clear()
