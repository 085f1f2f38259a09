"""When what died is started again."""

from __future__ import annotations

from dataclasses import dataclass

from app.clock import monotonic_seconds


@dataclass(frozen=True, slots=True)
class Backoff:
    """When a dead process starts again, in seconds."""

    #: A life shorter than this counts as dying at once.
    quick_seconds: float = 10.0
    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    #: So many deaths at once in a row are worth the end of the log.
    loud_after: int = 3
    #: Between two tries to start a part whose disk is full.
    full_disk_seconds: float = 5.0

    def delay(self, quick_deaths: int) -> float:
        """Nothing after a long life; doubled for each death at once."""
        if quick_deaths == 0:
            return 0.0
        return float(min(self.longest_seconds, self.first_seconds * 2 ** (quick_deaths - 1)))


@dataclass(slots=True)
class Life:
    """How often in a row a process died at once."""

    quick_seconds: float
    started_at: float = 0.0
    quick_deaths: int = 0

    def begin(self) -> None:
        """The process starts."""
        self.started_at = monotonic_seconds()

    def end(self) -> int:
        """The process ended; returns the deaths at once in a row."""
        quick = monotonic_seconds() - self.started_at < self.quick_seconds
        self.quick_deaths = self.quick_deaths + 1 if quick else 0
        return self.quick_deaths
