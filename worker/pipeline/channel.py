"""A bounded queue between two stages that ends, fails and closes without polling."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelClosedError(Exception):
    """The reader went away; the writer must end too."""


class Channel(Generic[T]):
    """At most ``depth`` values between one writer and one reader, in order.

    The writer ends it with :meth:`finish` or :meth:`fail`; the reader gives up with
    :meth:`close`, which wakes a writer that waits for room, and a reader of another thread.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._values: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, value: T) -> None:
        """Append a value, waiting for room. Raises ChannelClosedError where nobody reads."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._values) < self._depth)
            if self._closed:
                raise ChannelClosedError
            self._values.append(value)
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that no value follows."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the channel: the reader gets ``error`` at once, whatever still waits in it."""
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = self._finished = True
            self._values.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._values or self._finished)
                if self._error is not None:
                    raise self._error
                if not self._values:
                    return
                value = self._values.popleft()
                self._changed.notify_all()
            yield value
