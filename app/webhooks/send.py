"""One POST to a receiver that nobody trusts: bounded in time, and its body is never read.

The standard library's client, because it follows no redirect and asks no proxy.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult

from app.webhooks.hosts import port_of, split_url

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0


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
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    connect_seconds: float = CONNECT_SECONDS,
    total_seconds: float = TOTAL_SECONDS,
) -> Outcome:
    """POST ``body`` and tell the status; raises nothing that the receiver can bring about.

    The time bounds the whole exchange: a receiver that sends a byte every second is cut off too.
    """
    parts = split_url(url)
    connection = _connection(parts, connect_seconds)
    cut = _Cut(connection)
    timer = threading.Timer(total_seconds, cut)
    timer.start()
    try:
        connection.connect()
        if cut.is_made:
            raise TimeoutError
        connection.sock.settimeout(total_seconds)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, dict(headers))
        status = connection.getresponse().status
        if cut.is_made:
            raise TimeoutError
    except (OSError, http.client.HTTPException) as fault:
        return Outcome(error=_words(TimeoutError() if cut.is_made else fault))
    finally:
        timer.cancel()
        connection.close()
    if 200 <= status < 300:
        return Outcome(status)
    more = "; redirects are not followed" if 300 <= status < 400 else ""
    return Outcome(status, f"the receiver answered {status}{more}")


class _Cut:
    """Ends a connection from another thread, in whatever call it is."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self.is_made = False

    def __call__(self) -> None:
        self.is_made = True
        sock = self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Closed already, or not connected yet: the flag is seen after connect.
                return


def _connection(parts: SplitResult, connect_seconds: float) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", port_of(parts)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            host, port, timeout=connect_seconds, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(host, port, timeout=connect_seconds)


def _words(fault: BaseException) -> str:
    """Why there was no answer; never a word of the receiver's own, which the log would show."""
    if isinstance(fault, TimeoutError):
        return "the receiver did not answer in time"
    if isinstance(fault, socket.gaierror):
        return "the receiver's name was not found"
    if isinstance(fault, ConnectionRefusedError):
        return "the receiver refused the connection"
    if isinstance(fault, ssl.SSLError):
        return "no TLS connection that can be trusted came about"
    if isinstance(fault, http.client.HTTPException) and not isinstance(fault, OSError):
        return "the receiver did not answer in HTTP"
    return "the connection to the receiver was lost"
