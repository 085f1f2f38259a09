"""Bounded long polls: a few clients wait, the rest are told to come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.api.places import Places
from app.clock import monotonic_seconds

#: Between two looks at a row: short enough to feel instant, 4 cheap reads a second each.
_INTERVAL_SECONDS = 0.25


class WaitSlots:
    """The places for clients that wait; each holds a thread, but no database connection."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._closing = threading.Event()

    @contextmanager
    def take(self) -> Iterator[bool]:
        """Whether there was a free place; it is given back at the end of the block."""
        taken = self._places.take()
        try:
            yield taken
        finally:
            if taken:
                self._places.give_back()

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Ask ``done`` at intervals until it says yes or ``seconds`` have passed."""
        deadline = monotonic_seconds() + seconds
        while (left := deadline - monotonic_seconds()) > 0:
            if self._closing.wait(min(_INTERVAL_SECONDS, left)) or done():
                return

    @property
    def is_closing(self) -> bool:
        """Whether the process is about to stop, so that nobody should wait any more."""
        return self._closing.is_set()

    def close(self) -> None:
        """Let everyone go who waits: the process is about to stop."""
        self._closing.set()
