"""The API under gunicorn, as it is run, for tests that need sockets."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.stack.processes import free_port
from app.storage.s3 import ObjectStore
from tests.service import environment, wait_until

#: A test that hangs says so after this; a busy machine is slow.
PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of a problem document."""
        return str(json.loads(self.body)["code"])


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that runs; ``pid`` is that of the process that serves."""

    port: int
    pid: int

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def send(self, *pieces: bytes) -> Reply:
        """The answer to bytes that are sent as they are."""
        with self.connect() as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The server had heard enough; what it said may still be read.
            return read_reply(connection)


@contextmanager
def running_api(
    settings: Settings, objects: ObjectStore, *, threads: int = 4, **overrides: Any
) -> Iterator[HttpServer]:
    """The API with so many threads; ``overrides`` are settings. Its log goes to our stderr."""
    objects.ensure_bucket(settings.bucket)
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "--worker-class", "app.api.server.ApiWorker"),
        *("--threads", str(threads), "--bind", f"127.0.0.1:{port}"),
        *("--no-control-socket", "app.api.app:create_app()"),
    ]
    variables = environment(settings, **overrides)
    # The API works under row level security, and has no other door.
    variables.pop("SYSTEM_DATABASE_URL", None)
    with (
        # A file and no pipe, which would fill up and hold every thread that logs.
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, env=variables, stderr=log) as process,
    ):

        def booted() -> int | None:
            assert process.poll() is None, Path(log.name).read_text()
            found = re.search(r"Booting worker with pid: (\d+)", Path(log.name).read_text())
            return int(found[1]) if found else None

        try:
            yield HttpServer(port, wait_until(booted, "gunicorn starts"))
        finally:
            process.terminate()
            process.wait(timeout=30)
            sys.stderr.write(Path(log.name).read_text()[-20_000:])


def read_reply(connection: socket.socket) -> Reply:
    """One answer, up to its announced end or that of the connection; status 0 where none came."""
    heard = b""
    try:
        while b"\r\n\r\n" not in heard:
            piece = connection.recv(65536)
            if not piece:
                return Reply(0, {}, heard)
            heard += piece
        head, _, body = heard.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.title(): value for name, value in (each.split(": ", 1) for each in lines)}
        size = int(headers.get("Content-Length", sys.maxsize))
        while len(body) < size and (piece := connection.recv(65536)):
            body += piece
    except ConnectionResetError:
        return Reply(0, {}, heard)
    return Reply(int(first.split(" ")[1]), headers, body)


def peak_kib(pid: int) -> int:
    """The most memory that a process ever held."""
    with open(f"/proc/{pid}/status") as status:
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert peak is not None
    return int(peak[1])
