"""Measuring how long a stage was busy."""

from __future__ import annotations

import time
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
