"""One POST to a receiver that nobody trusts: bounded in time and size, and its body is never read.

The standard library's client, because it follows no redirect and asks no proxy; on a connection
of our own, which goes to an address that the guard has checked and knows its limits.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.webhooks.guard import Target
from app.webhooks.hosts import DEFAULT_PORT

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
#: Of an answer: its status, its headers, and what came along of its body.
MOST_BYTES = 32 * 1024
#: Of a name with more, the others are not tried.
_MOST_ADDRESSES = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a POST: the receiver's status, or why there is none."""

    status: int | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more."""
        return self.status == http.HTTPStatus.GONE


def post(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    *,
    connect_seconds: float = CONNECT_SECONDS,
    total_seconds: float = TOTAL_SECONDS,
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    """POST ``body`` and tell the status; raises nothing that the receiver can bring about.

    The time bounds the whole exchange: a receiver that sends a byte every second is cut off too.
    ``tls`` says whom to trust, which is whom the system trusts where it is left out.
    """
    deadline = time.monotonic() + total_seconds
    parts = target.parts
    # For the words of HTTP alone: it opens nothing, and name and port become the header Host.
    connection = http.client.HTTPConnection(parts.host, parts.port)
    connection.auto_open = 0
    connection.default_port = DEFAULT_PORT[parts.scheme]
    sock: socket.socket | None = None
    try:
        sock = _connect(target, deadline, connect_seconds)
        if parts.scheme == "https":
            sock.settimeout(_left(deadline))
            # The name that the certificate must be for, whatever the address.
            sock = (tls or _trust()).wrap_socket(sock, server_hostname=parts.host)
        connection.sock = _Wire(sock, deadline)
        connection.request("POST", parts.target, body, dict(headers))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as fault:
        return Outcome(error=_words(fault))
    finally:
        if sock is not None:
            sock.close()
    if 200 <= status < 300:
        return Outcome(status)
    more = "; redirects are not followed" if 300 <= status < 400 else ""
    return Outcome(status, f"the receiver answered {status}{more}")


def _connect(target: Target, deadline: float, connect_seconds: float) -> socket.socket:
    """A connection to the first checked address that takes one."""
    fault: OSError = TimeoutError()
    for address in target.addresses[:_MOST_ADDRESSES]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(connect_seconds, _left(deadline)))
            sock.connect((address, target.parts.port))
        except OSError as error:
            sock.close()
            fault = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise fault


@functools.cache
def _trust() -> ssl.SSLContext:
    """Whom the system trusts; read once, as that costs more than a whole POST."""
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TooMuchError(OSError):
    """The receiver says more than anybody needs to hear."""


class _Wire:
    """A connected socket with a deadline and a bound on what is read, as http.client wants it."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: ReadableBuffer) -> None:
        view = memoryview(data)
        while view:
            self._sock.settimeout(_left(self._deadline))
            view = view[self._sock.send(view) :]

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_Answer(self._sock, self._deadline))

    def close(self) -> None:
        # Whoever opened the socket closes it.
        return


class _Answer(io.RawIOBase):
    """The receiver's bytes, as long as there is time and they are few."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._bytes_left = MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if not self._bytes_left:
            raise _TooMuchError
        self._sock.settimeout(_left(self._deadline))
        count = self._sock.recv_into(memoryview(buffer)[: self._bytes_left])
        self._bytes_left -= count
        return count


def _words(fault: BaseException) -> str:
    """Why there was no answer; never a word of the receiver's own, which the log would show."""
    if isinstance(fault, TimeoutError):
        return "the receiver did not answer in time"
    if isinstance(fault, ConnectionRefusedError):
        return "the receiver refused the connection"
    if isinstance(fault, ssl.SSLError):
        return "no TLS connection that can be trusted came about"
    if isinstance(fault, _TooMuchError):
        return "the receiver's headers were too long"
    if isinstance(fault, http.client.HTTPException) and not isinstance(fault, OSError):
        return "the receiver did not answer in HTTP"
    return "the connection to the receiver was lost"
