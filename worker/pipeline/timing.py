"""Measuring how long a stage was busy, and a process with all that it does at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Stopwatch:
    """Seconds spent inside the ``with`` blocks of one stage, summed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started_at = 0.0

    def __enter__(self) -> Stopwatch:
        self._started_at = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += time.perf_counter() - self._started_at


class SharedTime:
    """Divides the time of a process among those who work in it at once.

    While two work, each is charged half of every second, so that all charges sum to the time in
    which anybody worked: images by charged seconds is what the process does in a second.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._working = 0
        #: What one who worked from the beginning on would have been charged.
        self._charged = 0.0
        self._looked_at = 0.0

    @contextmanager
    def share(self) -> Iterator[Stopwatch]:
        """A block of work; its ``seconds`` are the charge, once it is over."""
        charge = Stopwatch()
        start = self._move(1)
        try:
            yield charge
        finally:
            charge.seconds = self._move(-1) - start

    def _move(self, change: int) -> float:
        with self._lock:
            now = self._clock()
            if self._working:
                self._charged += (now - self._looked_at) / self._working
            self._looked_at = now
            self._working += change
            return self._charged
