"""The worker class of gunicorn that serves the API: ``--worker-class app.api.server.ApiWorker``.

It differs from gunicorn's own threads in two things. No client can keep many threads busy by being
slow: a connection gets one only when the head of a request is there, and from then on it is paced,
in what it sends and in what it reads. And what cannot be read as a request is answered as all else
is: by a problem document with a code.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from gunicorn import util
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from app.api.headers import SECURITY_HEADERS
from app.api.pace import HEAD_SECONDS, PacedSocket
from app.api.places import slow_places_of
from app.clock import monotonic_seconds
from app.ids import REQUEST, new_id
from app.log import get_logger

#: A connection that has sent nothing for so long is closed; it holds no thread meanwhile.
_FIRST_BYTE_SECONDS = 5.0

#: What gunicorn refuses while it reads → status, code, words. The first that fits.
_REFUSALS: tuple[tuple[tuple[type[Exception], ...], int, str, str], ...] = (
    ((errors.LimitRequestLine,), 414, "uri_too_long", "the address has more than 4,094 bytes"),
    (
        (errors.LimitRequestHeaders,),
        431,
        "headers_too_large",
        "there are more than 100 header lines, or one has more than 8,190 bytes",
    ),
    (
        (errors.UnsupportedTransferCoding,),
        501,
        "transfer_coding_unsupported",
        "Transfer-Encoding may be chunked and nothing else",
    ),
    (
        (errors.ExpectationFailed,),
        417,
        "expectation_failed",
        "Expect may be 100-continue and nothing else",
    ),
    (
        (errors.InvalidChunkSize, errors.ChunkMissingTerminator, errors.InvalidChunkExtension),
        400,
        "body_incomplete",
        "the chunked body is broken",
    ),
    (
        (errors.ParseException,),
        400,
        "request_malformed",
        "this is no request of HTTP/1.1, or one that could be read in two ways",
    ),
)
_TOO_SLOW = (408, "request_too_slow", "the request did not arrive in time; send it faster")
_FAULT = (500, "internal_error", "something went wrong inside the service")

#: Time for a client to read its answer before the connection is torn down.
_LINGER_SECONDS = 2.0
#: A head that has begun is looked at so often, and holds no thread meanwhile.
_LOOK_SECONDS = 0.05
#: What can be seen of a head before it is read; longer ones are refused by whoever reads them.
_HEAD_BYTES, _LINE_BYTES = 64 * 1024, 8 * 1024
#: A listener that was readable a moment ago, and has nothing any more.
_NOTHING_TO_ACCEPT = (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK)

log = get_logger(__name__)


class ApiWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threads, paced."""

    def init_process(self) -> None:
        """Tell the application how many threads serve it, before it is loaded."""
        os.environ["DARKROOM_API_THREADS"] = str(self.cfg.threads)
        #: Connections whose head has begun to arrive; they are looked at, and hold no thread.
        self.heads: list[Any] = []
        #: Connections that are answered and closed on our side → when they are on both.
        self.lingering: dict[Any, float] = {}
        self.slow_places = threading.BoundedSemaphore(slow_places_of(self.cfg.threads))
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Take a connection, and wait without a thread until something comes."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno not in _NOTHING_TO_ACCEPT:
                raise
            return
        self.nr_conns += 1
        conn = _PacedConn(self, client, address, listener.getsockname())
        conn.timeout = monotonic_seconds() + _FIRST_BYTE_SECONDS
        self.pending_conns.append(conn)
        self.poller.register(client, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """The first bytes of a new connection are there."""
        self.pending_conns.remove(conn)
        self._begin(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """The first bytes of a further request are there."""
        self.keepalived_conns.remove(conn)
        self._begin(conn, client)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait until something happens, and look at the heads that are still on their way."""
        super().wait_for_and_dispatch_events(min(timeout, _LOOK_SECONDS) if self.heads else timeout)
        now = monotonic_seconds()
        for client in [client for client, until in self.lingering.items() if until < now]:
            self._let_go(client)
        waiting, self.heads = self.heads, []
        for conn in waiting:
            if conn.head_is_there():
                self.enqueue_req(conn)
            elif now < conn.timeout:
                self.heads.append(conn)
            else:
                write_problem(conn.sock, *_TOO_SLOW)
                self.nr_conns -= 1
                conn.close()

    def linger(self, client: Any) -> None:
        """Close for writing, and for good when the client has closed, or a moment later.

        To close at once while unread bytes are there would tear the answer away from the client.
        gunicorn waits here, two seconds a client and nobody else served; this does not.
        """
        try:
            client.setblocking(False)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            client.close()
            return
        self.lingering[client] = monotonic_seconds() + _LINGER_SECONDS
        self.poller.register(client, EVENT_READ, self._hear_out)

    def _hear_out(self, client: Any) -> None:
        try:
            if client.recv(_HEAD_BYTES):
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("client_gone", error=str(error))
        self._let_go(client)

    def _let_go(self, client: Any) -> None:
        del self.lingering[client]
        self.poller.unregister(client)
        client.close()

    def _begin(self, conn: Any, client: Any) -> None:
        """Give the request a thread as soon as its head is there."""
        self.poller.unregister(client)
        conn.data_ready = True
        conn.timeout = monotonic_seconds() + HEAD_SECONDS
        if conn.head_is_there():
            self.enqueue_req(conn)
        else:
            self.heads.append(conn)

    def handle(self, conn: Any) -> Any:
        """Serve one request; runs in a thread."""
        conn.begin_head()
        try:
            return super().handle(conn)
        finally:
            conn.end()

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request whose head is read."""
        conn.begin_body(req)
        with conn.paced_answer():
            return super().handle_request(req, conn)

    def handle_error(self, _req: Any, client: Any, _addr: Any, exc: Exception) -> None:
        """Answer what could not be read, or what nobody caught, with a problem document."""
        status, code, detail = _FAULT
        for kinds, *words in _REFUSALS:
            if isinstance(exc, kinds):
                status, code, detail = words  # type: ignore[assignment]
                break
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and code == "internal_error":
            log.error("request_failed", exc_info=exc)
        else:
            log.info("request_refused", code=code, status=status)
        write_problem(client, status, code, detail)


class _PacedConn(TConn):  # type: ignore[misc]
    """A connection whose reads and writes are bounded."""

    sock: Any

    def __init__(self, worker: ApiWorker, sock: Any, client: Any, server: Any) -> None:
        super().__init__(worker.cfg, sock, client, server)
        self._worker = worker
        self._pace: PacedSocket | None = None
        self._in_head = False
        self._seen_bytes = 0

    def head_is_there(self) -> bool:
        """Whether the parser will come to an end with what has arrived, one way or another."""
        if self.cfg.is_ssl:
            return True
        try:
            waiting = _waiting_bytes(self.sock)
            if waiting == self._seen_bytes and waiting:
                return False
            self._seen_bytes = waiting
            head = self.sock.recv(_HEAD_BYTES, socket.MSG_PEEK)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        # Some clients send an empty line first.
        line, ended, _ = head.removeprefix(b"\r\n").partition(b"\r\n")
        return (
            not head
            or len(head) >= _HEAD_BYTES
            or len(line) >= _LINE_BYTES
            or (bool(ended) and b" HTTP/1." not in line)
            or b"\r\n\r\n" in head
            or head.count(b"\n") != head.count(b"\r\n")
        )

    def init(self) -> None:
        """Put the clock between parser and socket; the parser exists only now."""
        fresh = not self.initialized
        super().init()
        unreader = getattr(self.parser, "unreader", None)
        if fresh and unreader is not None and hasattr(unreader, "sock"):
            self._pace = unreader.sock = PacedSocket(self.sock, self._worker.slow_places)

    def begin_head(self) -> None:
        """A request begins."""
        self._in_head = True
        self._seen_bytes = 0
        if self._pace is not None:
            self._pace.begin_head()

    def begin_body(self, req: Any) -> None:
        """Its head is there; the application finds the clock at the body."""
        self._in_head = False
        if self._pace is not None:
            self._pace.begin_body()
            if req.body is not None:
                req.body.pace = self._pace

    @contextmanager
    def paced_answer(self) -> Iterator[None]:
        """What is answered goes past the clock, too: a client decides when it is read."""
        plain = self.sock
        self.sock = self._pace or plain
        try:
            yield
        finally:
            self.sock = plain

    def close(self, graceful: bool = False) -> None:
        """Close it; gracefully, the client has a moment to read what it was told."""
        if graceful and not self.cfg.is_ssl:
            self._worker.linger(self.sock)
        else:
            super().close(graceful)

    def end(self) -> None:
        """The request was answered, or given up."""
        if self._pace is None:
            return
        self._pace.end()
        if self._pace.is_cut and self._in_head:
            write_problem(self.sock, *_TOO_SLOW)


def _waiting_bytes(sock: Any) -> int:
    """How many bytes have arrived and were not read."""
    number = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(number, sys.byteorder)


def write_problem(client: Any, status: int, code: str, detail: str) -> None:
    """Answer past the application, as it would; a client that has gone misses nothing."""
    phrase = HTTPStatus(status).phrase
    request_id = new_id(REQUEST)
    body = json.dumps(
        {
            "type": "about:blank",
            "title": phrase,
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": request_id,
        }
    ).encode()
    head = {
        "Connection": "close",
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Request-Id": request_id,
        **SECURITY_HEADERS,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    try:
        util.write_nonblock(client, f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode() + body)
    except OSError as error:
        log.debug("answer_not_sent", code=code, error=str(error))
