"""A child that dies takes with it what it had started, before its replacement starts."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.stack.backoff import Backoff
from app.stack.processes import free_port, wait_gone
from app.stack.supervisor import ChildSpec, Supervisor
from tests.service import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="groups are ended on Linux alone")

LIMIT_SECONDS = 30.0
QUICK = Backoff(quick_seconds=0.0, first_seconds=0.01, longest_seconds=0.02)

# Answers with the pid of its process, then leaves the answer open for as long as the test lasts.
STREAM = """
import os, time
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield f"pid {os.getpid()}\\n".encode()
    while True:
        time.sleep(0.2)
        yield b"."
"""

# Starts a process that heeds no SIGTERM, tells of it and waits.
PARENT = """
import pathlib, signal, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
signal.pause()
''', sys.argv[1] + ".ready"])
while not pathlib.Path(sys.argv[1] + ".ready").exists():
    time.sleep(0.01)
pathlib.Path(sys.argv[1]).write_text(str(grandchild.pid))
signal.sigwait([signal.SIGUSR1])
"""


def supervise(tmp_path: Path, *specs: ChildSpec) -> tuple[Supervisor, list[str]]:
    lines = list[str]()
    return Supervisor(specs, logs_dir=tmp_path / "logs", say=lines.append, backoff=QUICK), lines


def started_again(lines: list[str], name: str) -> Callable[[], bool]:
    return lambda: any(line.startswith(f"{name} was started again") for line in lines)


def open_stream(port: int) -> tuple[socket.socket, int]:
    """A stream that has begun, and the pid of the process that serves it."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    received = b""
    while b"pid " not in received or not received.rpartition(b"pid ")[2].count(b"\n"):
        received += connection.recv(4096)
    return connection, int(received.rpartition(b"pid ")[2].split()[0])


def listens(port: int) -> Callable[[], bool]:
    def look() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return look


def test_server_killed_beside_an_open_stream_has_its_port_free_for_the_next(
    tmp_path: Path,
) -> None:
    (tmp_path / "stream.py").write_text(STREAM)
    port = free_port()
    server = ChildSpec(
        "api",
        [
            *(sys.executable, "-P", "-m", "gunicorn", "--worker-class", "gthread"),
            *("--workers", "1", "--threads", "2", "--bind", f"127.0.0.1:{port}"),
            *("--graceful-timeout", "20", "--chdir", str(tmp_path), "--no-control-socket"),
            "stream:app",
        ],
    )
    supervisor, lines = supervise(tmp_path, server)
    supervisor.start()
    try:
        assert supervisor.run_until(listens(port), LIMIT_SECONDS)
        stream, worker = open_stream(port)
        master = supervisor.pids()["api"]
        assert worker != master
        os.kill(master, signal.SIGKILL)
        assert supervisor.run_until(started_again(lines, "api"), LIMIT_SECONDS)
        # Gone before the next one was started, not at some later time.
        assert wait_gone(worker, 0)
        assert supervisor.run_until(listens(port), LIMIT_SECONDS)
        again, next_worker = open_stream(port)
        assert next_worker != worker
        stream.close()
        again.close()
    finally:
        supervisor.drain(1)
    assert "Address already in use" not in (tmp_path / "logs" / "api.log").read_text()
    assert wait_gone(next_worker, 0)


def test_group_of_a_dead_child_ends_and_no_other(tmp_path: Path) -> None:
    names = {name: tmp_path / name for name in ("worker-1", "worker-2")}
    specs = [
        ChildSpec(name, [sys.executable, "-c", PARENT, str(path)]) for name, path in names.items()
    ]
    supervisor, lines = supervise(tmp_path, *specs)
    supervisor.start()
    try:
        ready = supervisor.run_until(
            lambda: all(path.exists() and path.read_text() for path in names.values()),
            LIMIT_SECONDS,
        )
        assert ready
        killed, spared = (int(path.read_text()) for path in names.values())
        os.kill(supervisor.pids()["worker-1"], signal.SIGKILL)
        assert supervisor.run_until(started_again(lines, "worker-1"), LIMIT_SECONDS)
        assert wait_gone(killed, 0)
        assert not wait_gone(spared, 0)
    finally:
        supervisor.drain(LIMIT_SECONDS)
    # One that ends as it was told takes its group along too.
    assert wait_gone(spared, 0)


def test_child_that_dies_just_before_a_drain_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    wait = os.waitid

    def late(*words: Any) -> Any:
        # The watcher sees the death only once the drain has sent its signal.
        told.wait(LIMIT_SECONDS)
        return wait(*words)

    monkeypatch.setattr(os, "waitid", late)
    child = ChildSpec("worker-1", [sys.executable, "-c", "import signal; signal.pause()"])
    supervisor, _ = supervise(tmp_path, child)
    supervisor.start()
    pid = supervisor.pids()["worker-1"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: " Z " in Path(f"/proc/{pid}/stat").read_text(), "the child has ended")
    draining = threading.Thread(target=supervisor.drain, args=(3600.0,), daemon=True)
    signalled = threading.Event()
    send = supervisor._signal

    def signal_child(*words: Any) -> bool:
        sent = send(*words)
        signalled.set()
        return sent

    monkeypatch.setattr(supervisor, "_signal", signal_child)
    draining.start()
    assert signalled.wait(LIMIT_SECONDS)
    told.set()
    draining.join(LIMIT_SECONDS)
    assert not draining.is_alive()
