"""Start, probe, find again and stop the processes of one machine; only ever by their pid."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from app.clock import monotonic_seconds
from app.errors import DarkroomError

LOG_MAX_BYTES = 10 * 1024 * 1024
# Long enough to cost nothing, short enough not to be felt: a probe is one local connection.
PROBE_SECONDS = 0.02


class StackError(DarkroomError):
    """A part of the local stack did not start or stop; the detail says what to do."""

    code = "stack_failed"
    status = 503
    #: What the command that started the stack exits with.
    exit_code = 1


class PartMissingError(StackError):
    """The program of a part is not installed and no URL stands in for it."""

    code = "part_missing"


class AlreadyRunningError(StackError):
    """Another supervisor holds the data folder."""

    code = "already_running"
    exit_code = 8


class PortTakenError(StackError):
    """Someone else listens on the address of the API."""

    code = "port_taken"
    exit_code = 9


class DiskFullError(StackError):
    """Too little space is left where the data folder lies."""

    code = "disk_full"
    exit_code = 10


def tail(path: Path, lines: int = 12, *, offset: int = 0) -> str:
    """The last ``lines`` lines of a log, never from before byte ``offset``."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset, end - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def rotate(path: Path) -> int:
    """Put a log that has grown too large aside as ``.1``; returns the size of what stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size <= LOG_MAX_BYTES:
        return size
    path.replace(path.with_name(path.name + ".1"))
    return 0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(_family(host)) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on ``host:port`` now."""
    with socket.socket(_family(host)) as listener:
        # As servers do: a port whose last connections are only lingering counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def remembered_port(path: Path) -> int:
    """The port kept in ``path`` if it is still free, else a new one that is kept there.

    A port that stays the same over restarts keeps presigned links and open consoles valid.
    """
    try:
        port = int(path.read_text())
    except (FileNotFoundError, ValueError):
        port = 0
    if not port or not port_is_free(port):
        port = free_port()
        path.write_text(f"{port}\n")
    return port


def wait_ready(
    process: subprocess.Popen[bytes], probe: Callable[[], bool], limit_seconds: float
) -> bool:
    """Probe until it answers true; false where the process ended or the time ran out first."""
    deadline = monotonic_seconds() + limit_seconds
    while not probe():
        try:
            process.wait(PROBE_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            if monotonic_seconds() > deadline:
                return False
    return True


def stop_child(
    process: subprocess.Popen[bytes],
    *signals: tuple[signal.Signals, float],
) -> int:
    """Send a child one signal after another, each with its time in seconds; returns its code."""
    for number, limit_seconds in (*signals, (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            break
        process.send_signal(number)
        try:
            return process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


def runs_in(pid: int, folder: Path, program: str) -> bool:
    """Whether ``pid`` is alive, stands in ``folder`` and runs a program so named.

    A pid read from a file may have gone to a stranger since; this is the proof that it is
    still the server we left there. False where the system has no ``/proc``.
    """
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
        return program in name and os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def pids_in(folder: Path, program: str) -> list[int]:
    """Every process that stands in ``folder`` and runs a program so named."""
    try:
        entries = os.listdir("/proc")
    except FileNotFoundError:
        return []
    return [int(e) for e in entries if e.isdigit() and runs_in(int(e), folder, program)]


def stop_orphan(pid: int, *signals: tuple[signal.Signals, float]) -> bool:
    """Stop a server that an earlier, killed supervisor left; false where it would not go."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        for number, limit_seconds in signals:
            try:
                # By handle: the pid cannot go to a stranger between the look and the signal.
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return True
            if _gone(handle, limit_seconds):
                return True
        return False
    finally:
        os.close(handle)


def wait_gone(pid: int, limit_seconds: float) -> bool:
    """Wait until a process that is not our child has ended; false where the time ran out."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return _gone(handle, limit_seconds)
    finally:
        os.close(handle)


def end_group(leader: int, limit_seconds: float) -> list[int]:
    """Kill whoever is left of a process group; returns those that would not go in time.

    The leader has ended and is a child of ours that nobody has reaped yet, so the number is still
    its group's. What it left may hold its port or its files: gunicorn's worker goes on
    serving an open stream for its whole grace after a master that was killed.
    """
    os.killpg(leader, signal.SIGKILL)
    # Looked for only now: whoever is being killed starts nothing more.
    left = [pid for pid in _group(leader) if pid != leader]
    deadline = monotonic_seconds() + limit_seconds
    return [pid for pid in left if not wait_gone(pid, max(0.0, deadline - monotonic_seconds()))]


def _group(leader: int) -> list[int]:
    """The processes of a group, by Linux' ``/proc``."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == leader:
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def _gone(handle: int, limit_seconds: float) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(int(limit_seconds * 1000)))
