"""Places for what holds a thread for long, so that threads are left for what does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import request

from app.api.pace import PacedSocket
from app.errors import UnavailableError

#: When a client that found no place should come back.
_RETRY_SECONDS = 2


class Places:
    """The places of one kind; those of all kinds together are bounded by ``held``."""

    def __init__(self, most: int, held: threading.Semaphore) -> None:
        self.most = most
        self._own = threading.BoundedSemaphore(most)
        self._held = held

    def take(self) -> bool:
        """Whether there was a place; then it is taken until it is given back."""
        if not self._own.acquire(blocking=False):
            return False
        if self._held.acquire(blocking=False):
            return True
        self._own.release()
        return False

    def give_back(self) -> None:
        """Leave the place to another."""
        self._held.release()
        self._own.release()


def take_download(places: Places) -> None:
    """Take a place for a download.

    Raises:
        UnavailableError: ``downloads_busy``.
    """
    if not places.take():
        raise UnavailableError(
            f"as many downloads are under way as this process takes, {places.most} at most",
            code="downloads_busy",
            retry_after_seconds=_RETRY_SECONDS,
        )
    connection = request.environ.get("gunicorn.socket")
    if isinstance(connection, PacedSocket):
        connection.begin_download()


@contextmanager
def place_to_look_up(places: Places) -> Iterator[None]:
    """Hold a place while a name is looked up: how long, a stranger's server decides.

    Raises:
        UnavailableError: ``lookups_busy``.
    """
    if not places.take():
        raise UnavailableError(
            f"as many names are being looked up as this process takes, {places.most} at most",
            code="lookups_busy",
            retry_after_seconds=_RETRY_SECONDS,
        )
    try:
        yield
    finally:
        places.give_back()


def held_threads(threads: int) -> threading.BoundedSemaphore:
    """How many of ``threads`` may be held for long: by waits, files and look-ups together.

    The rest is for requests that are answered at once, and for clients that send theirs slowly;
    see :func:`slow_places_of`.
    """
    return threading.BoundedSemaphore(max(1, threads - slow_places_of(threads) - 1))


def slow_places_of(threads: int) -> int:
    """How many threads slow clients may hold at once."""
    return max(1, threads // 4)
