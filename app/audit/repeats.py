"""What was noted a moment ago, so that a client in a loop cannot fill the audit log."""

from __future__ import annotations

import threading

from app.clock import monotonic_seconds

#: The same thing is noted once in so long, per process.
WINDOW_SECONDS = 60.0
#: Things remembered at once, at most.
_MOST = 10_000


class Repeats:
    """Tells news from what was told within the last minute; threads share it."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def is_news(self, *thing: str) -> bool:
        """Whether the thing was not told within the last minute; from now on it was."""
        now = monotonic_seconds()
        with self._lock:
            told = self._told.get(thing)
            if told is not None and now - told < WINDOW_SECONDS:
                return False
            if len(self._told) >= _MOST:
                since = now - WINDOW_SECONDS
                self._told = {each: at for each, at in self._told.items() if at > since}
            if len(self._told) >= _MOST:
                # All of them are recent: whoever needs so many different ones is told of no more.
                return False
            self._told[thing] = now
            return True
