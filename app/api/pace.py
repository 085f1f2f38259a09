"""How long a client may keep a thread waiting: slow ones get few threads, and not for long.

A thread reads a request, and it is a client that decides when the bytes come. Without a bound one
that sends a byte a minute has a thread for ever, and sixteen such clients have the service. So have
those that ask and never read what they are answered.
"""

from __future__ import annotations

import errno
import math
import threading
from typing import Any, Protocol

from app.clock import monotonic_seconds

#: The head of a request arrives whole within so long.
HEAD_SECONDS = 10.0
#: So does a body, apart from a file's.
BODY_SECONDS = 30.0
#: From then on an upload must have come at its least rate.
UPLOAD_GRACE_SECONDS = 60.0
#: Who takes longer than this for a head or a body, or keeps an answer waiting for longer, is slow,
#: and needs one of the few places.
PATIENCE_SECONDS = 1.0


#: A body that is no file may take so many bytes on the way, framing included: a chunk of one byte
#: costs as much time as one of a thousand.
BODY_BYTES = 4 * 1024 * 1024


class TooSlowError(OSError):
    """The client's bytes did not come in time; servers take it for a connection that was reset."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the request did not arrive in time")


class _Socket(Protocol):
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: memoryview, /) -> int: ...
    def fileno(self) -> int: ...
    def gettimeout(self) -> float | None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...


class PacedSocket:
    """One connection, with a clock for what it reads and for what waits to be read.

    All else is as the socket has it. ``places`` are those of all slow clients of the process.
    """

    def __init__(self, sock: _Socket, places: threading.Semaphore) -> None:
        self._sock = sock
        self._places = places
        self._holds_place = False
        self._needs_place = True
        self._began = monotonic_seconds()
        self._limit_seconds = HEAD_SECONDS
        self._most_bytes = math.inf
        self._least_rate = 0.0
        self._arrived = 0
        #: How long the answer has waited for the client, and whether it may for longer at all.
        self._waited_seconds = 0.0
        self._answer_needs_place = True
        #: Whether it was cut for being slow.
        self.is_cut = False
        #: Whether it was cut for sending too much.
        self.is_over = False

    def begin_head(self) -> None:
        """A request begins to arrive."""
        self._begin(HEAD_SECONDS, math.inf)

    def begin_body(self) -> None:
        """The head is read, and a body may follow."""
        self._begin(BODY_SECONDS, BODY_BYTES)

    def begin_upload(self, least_rate: float) -> None:
        """The body is a file: it may take any time, at ``least_rate`` bytes a second.

        Who says so bounds how many there are.
        """
        self._begin(UPLOAD_GRACE_SECONDS, math.inf)
        self._least_rate = least_rate
        self._needs_place = False

    def begin_download(self) -> None:
        """The answer is a file: a client may take its time for it.

        Who says so bounds how many there are.
        """
        self._answer_needs_place = False

    def end(self) -> None:
        """Nothing more is read for now."""
        if self._holds_place:
            self._holds_place = False
            self._places.release()

    def recv(self, size: int) -> bytes:
        """The next bytes, none where the client has closed.

        Raises:
            TooSlowError: they did not come in time.
            OSError: there are too many of them.
        """
        if self._arrived > self._most_bytes:
            self.is_over = True
            raise OSError(errno.ECONNRESET, "the body has too many bytes on the way")
        if self._needs_place and not self._holds_place:
            patient = self._began + PATIENCE_SECONDS - monotonic_seconds()
            if patient > 0 and (piece := self._try_recv(size, patient)) is not None:
                return piece
            self._holds_place = self._places.acquire(blocking=False)
            if not self._holds_place:
                raise self._cut()
        left = self._ends_at() - monotonic_seconds()
        piece = self._try_recv(size, left) if left > 0 else None
        if piece is None:
            raise self._cut()
        return piece

    def sendall(self, data: bytes) -> None:
        """Send it all, as fast as the client reads.

        Raises:
            TooSlowError: the client did not read in time.
        """
        bound = self._sock.gettimeout()
        began = monotonic_seconds()
        ends_at = math.inf if bound is None else began + bound
        left = memoryview(data)
        try:
            while left:
                left = left[self._try_send(left, ends_at) :]
        finally:
            self._sock.settimeout(bound)

    def _try_send(self, data: memoryview, ends_at: float) -> int:
        """How many bytes went; none where the client was too slow to read without a place."""
        began = monotonic_seconds()
        seconds = ends_at - began
        in_patience = self._answer_needs_place and not self._holds_place
        if in_patience:
            seconds = min(seconds, max(0.0, PATIENCE_SECONDS - self._waited_seconds))
        if seconds > 0:
            self._sock.settimeout(seconds if math.isfinite(seconds) else None)
            try:
                return self._sock.send(data)
            except TimeoutError:
                pass
            finally:
                self._waited_seconds += monotonic_seconds() - began
        if monotonic_seconds() < ends_at and in_patience:
            self._holds_place = self._places.acquire(blocking=False)
            if self._holds_place:
                return 0
        raise self._cut()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        """Seconds that one read or write may take."""
        return self._sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        """Bound one read or write further."""
        self._sock.settimeout(seconds)

    def _begin(self, limit_seconds: float, most_bytes: float) -> None:
        self.end()
        self._began = monotonic_seconds()
        self._limit_seconds = limit_seconds
        self._most_bytes = most_bytes
        self._least_rate = 0.0
        self._arrived = 0
        self._needs_place = True
        self._waited_seconds = 0.0
        self._answer_needs_place = True

    def _ends_at(self) -> float:
        more = self._arrived / self._least_rate if self._least_rate else 0.0
        return self._began + self._limit_seconds + more

    def _try_recv(self, size: int, seconds: float) -> bytes | None:
        """The next bytes, or None where none came within ``seconds``."""
        bound = self._sock.gettimeout()
        self._sock.settimeout(seconds if bound is None else min(seconds, bound))
        try:
            piece = self._sock.recv(size)
        except TimeoutError:
            if bound is not None and bound <= seconds:
                # Not ours: whoever set it asks how long the client is silent.
                raise self._cut() from None
            return None
        finally:
            self._sock.settimeout(bound)
        self._arrived += len(piece)
        return piece

    def _cut(self) -> TooSlowError:
        self.is_cut = True
        return TooSlowError()
