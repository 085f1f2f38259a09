"""How often, and after how long, a failed fetch is tried again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from app.errors import DarkroomError

#: Tries of one item.
_ATTEMPTS = 4
#: Most failures in a row before the store counts as away.
_FAILED_IN_ROW = 32


class RetryBudget:
    """Retries that one chunk may spend, with full jitter between them; thread-safe.

    ``total`` bounds the retries of the whole chunk, so that a store that is down costs it
    seconds and not hours. ``base_seconds`` doubles
    with each failure up to ``cap_seconds``; the wait is drawn evenly from nothing to that.
    ``on_end`` hears of every try that ended, well or badly.
    """

    def __init__(
        self,
        *,
        total: int = 32,
        base_seconds: float = 0.2,
        cap_seconds: float = 5.0,
        halt: threading.Event | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._left = self._total = total
        self._on_end = on_end
        #: Failures that may pass since the store last answered.
        self._failed_in_row = 0
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._halt = halt or threading.Event()
        self._lock = threading.Lock()

    @property
    def is_hopeless(self) -> bool:
        """Whether the store has failed so often in a row that asking on only takes time."""
        return self._failed_in_row >= min(self._total, _FAILED_IN_ROW)

    def answered(self) -> None:
        """Say that the store gave what it was asked for."""
        self._on_end()
        self._failed_in_row = 0

    def wait_to_retry(self, error: DarkroomError, failures: int) -> bool:
        """Wait and say True where one more try is due after ``failures`` failed ones."""
        self._on_end()
        if not error.retryable:
            # An answer too: there is no such object.
            self._failed_in_row = 0
            return False
        with self._lock:
            self._failed_in_row += 1
        if failures >= _ATTEMPTS or self.is_hopeless:
            return False
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            longest = min(self._cap_seconds, self._base_seconds * 2 ** (failures - 1))
            seconds = random.uniform(0, longest)  # noqa: S311  spreads load, protects nothing
        # Set when the run ends early: then nobody waits for this item any more.
        return not self._halt.wait(seconds)
