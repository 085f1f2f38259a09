"""A store that misbehaves on request: a proxy in front of the real one, in this process."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

#: ``error``: 500. ``slow``: the body trickles. ``short``: the connection ends in the body.
#: ``hang``: no byte comes until the rule is lifted. ``refuse``: the connection is cut at once.
Kind = Literal["error", "slow", "short", "hang", "refuse"]
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade"})
_PIECE_BYTES = 64 * 1024
_TRICKLE_SECONDS = 0.05
_HANG_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class Rule:
    """A fault of requests whose path holds ``part``: of every ``every``-th, ``limit`` times."""

    kind: Kind
    part: str
    every: int = 1
    limit: int = 1_000_000
    method: str = "GET"
    seen: int = 0
    done: int = 0


class S3Proxy:
    """Passes everything on unchanged (signatures stay valid) but what a rule spoils."""

    def __init__(self, upstream_url: str) -> None:
        upstream = urlsplit(upstream_url)
        self.upstream = (str(upstream.hostname), int(upstream.port or 80))
        self.done: Counter[str] = Counter()
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.lifted = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @contextmanager
    def misbehaving(self, *rules: Rule) -> Iterator[None]:
        """Spoil what the rules say for as long as the block runs."""
        self.lifted.clear()
        with self._lock:
            self._rules = list(rules)
        try:
            yield
        finally:
            with self._lock:
                self._rules = []
            self.lifted.set()

    def choose(self, method: str, path: str) -> Kind | None:
        """The fault of this request, if any."""
        with self._lock:
            for rule in self._rules:
                if rule.part not in path or rule.method != method:
                    continue
                rule.seen += 1
                if rule.seen % rule.every == 0 and rule.done < rule.limit:
                    rule.done += 1
                    self.done[rule.kind] += 1
                    return rule.kind
        return None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: S3Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # A proxy's answers are many small writes, and none of them should wait for another.
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            kind = proxy.choose(self.command, self.path)
            if kind == "refuse":
                self.close_connection = True
                return
            if kind == "error":
                self._answer(500, {"Content-Length": "0"})
                return
            if kind == "hang":
                proxy.lifted.wait(_HANG_SECONDS)
            connection = http.client.HTTPConnection(*proxy.upstream, timeout=30)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                # As it came: the host is part of the signature.
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                self._copy(connection.getresponse(), kind)
            except OSError:
                # The store itself is down.
                self.close_connection = True
            finally:
                connection.close()

        def _copy(self, answer: http.client.HTTPResponse, kind: Kind | None) -> None:
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            content = answer.read() if "Content-Length" not in headers else None
            if content is not None:
                headers["Content-Length"] = str(len(content))
            self._answer(answer.status, headers)
            if self.command == "HEAD":
                return
            if content is not None:
                self.wfile.write(content)
                return
            size = int(headers["Content-Length"])
            if kind == "short" and size:
                self.wfile.write(answer.read(size // 2))
                self.wfile.flush()
                self.close_connection = True
                return
            piece_bytes = max(size // 8, 1) if kind == "slow" else _PIECE_BYTES
            while piece := answer.read(piece_bytes):
                self.wfile.write(piece)
                if kind == "slow":
                    self.wfile.flush()
                    threading.Event().wait(_TRICKLE_SECONDS)

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def __getattr__(self, name: str) -> Any:
            # The standard library looks for do_GET and its like.
            if name.startswith("do_"):
                return self._pass
            raise AttributeError(name)

    return Handler
