"""Lets a chunk that may kill its worker run alone in it, so that no neighbour is blamed.

A worker runs several chunks at once, and its death counts against each of them. A chunk that
killed before is a suspect: it enters alone. The gate is passed before the claim, so that a
death while a suspect waits for its turn blames nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.clock import monotonic_seconds

#: Between two looks of a waiting thread at whether the process stops.
_LOOK_SECONDS = 0.2


class Gate:
    """A lock that many hold together or one alone; who wants it alone goes first."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._changed = threading.Condition()
        self._together = 0
        self._alone = False
        self._waiting = 0
        self._waiting_since = 0.0

    @property
    def wanted_seconds(self) -> float:
        """For how long those who hold it together have kept somebody from holding it alone."""
        with self._changed:
            if self._alone or not self._waiting:
                return 0.0
            return monotonic_seconds() - self._waiting_since

    @contextmanager
    def together(self) -> Iterator[bool]:
        """Hold the gate with others; False where the process stops before that."""
        with self._changed:
            entered = self._wait(lambda: not self._alone and not self._waiting, None)
            self._together += entered
        try:
            yield entered
        finally:
            with self._changed:
                self._together -= entered
                self._changed.notify_all()

    @contextmanager
    def alone(self, patience_seconds: float) -> Iterator[Passage | None]:
        """Hold the gate alone; None where the others, or the end of the process, forbid it.

        Nobody new enters while somebody waits here, and at most ``patience_seconds`` are
        waited: a chunk of hours beside it must not hold up all others.
        """
        with self._changed:
            if not self._waiting:
                self._waiting_since = monotonic_seconds()
            self._waiting += 1
            entered = self._wait(lambda: not self._alone and not self._together, patience_seconds)
            self._waiting -= 1
            if entered:
                self._alone = True
            self._changed.notify_all()
        passage = Passage(self._share)
        try:
            yield passage if entered else None
        finally:
            with self._changed:
                if passage.shared:
                    self._together -= 1
                elif entered:
                    self._alone = False
                self._changed.notify_all()

    def _share(self) -> None:
        with self._changed:
            self._alone = False
            self._together += 1
            self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], patience_seconds: float | None) -> bool:
        """Wait until the gate is free, with ``_changed`` held; whether it is."""
        began_at = monotonic_seconds()
        while not free():
            waited = monotonic_seconds() - began_at
            if self._stopping.is_set():
                return False
            if patience_seconds is not None and waited >= patience_seconds:
                return False
            self._changed.wait(_LOOK_SECONDS)
        return not self._stopping.is_set()


class Passage:
    """A suspect's time alone, which it may end before its work does."""

    def __init__(self, share: Callable[[], None]) -> None:
        self._share = share
        self.shared = False

    def share(self) -> None:
        """Let others in: the chunk has got on, so it is no suspect any more."""
        if not self.shared:
            self.shared = True
            self._share()
