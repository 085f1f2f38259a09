"""How often, and after how long, a failed fetch is tried again."""

from __future__ import annotations

import random
import threading

from app.errors import DarkroomError


class RetryBudget:
    """Retries that one chunk may spend, with full jitter between them; thread-safe.

    ``attempts`` bounds the tries of one item, ``total`` the retries of the whole chunk, so
    that a store that is down costs a chunk seconds and not hours. ``base_seconds`` doubles
    with each failure up to ``cap_seconds``; the wait is drawn evenly from nothing to that.
    """

    def __init__(
        self,
        *,
        attempts: int = 4,
        total: int = 32,
        base_seconds: float = 0.2,
        cap_seconds: float = 5.0,
        halt: threading.Event | None = None,
        seed: int | None = None,
    ) -> None:
        self._attempts = attempts
        self._left = total
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._halt = halt or threading.Event()
        # Jitter only spreads load; it protects nothing.
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()

    def wait_to_retry(self, error: DarkroomError, failures: int) -> bool:
        """Wait and say True where one more try is due after ``failures`` failed ones."""
        if not error.retryable or failures >= self._attempts:
            return False
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            longest = min(self._cap_seconds, self._base_seconds * 2 ** (failures - 1))
            seconds = self._random.uniform(0, longest)
        # Set when the run ends early: then nobody waits for this item any more.
        return not self._halt.wait(seconds)
