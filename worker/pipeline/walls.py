"""Walls that a process raises around itself before it handles hostile bytes.

What only limits is always raised; what the kernel may refuse, as many containers do, is reported
and gone without. Standard library only. As a command, ``python -m worker.pipeline.walls`` raises
them in a process of its own and prints, as JSON, which ones there are on this machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: linux/sched.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
#: linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
#: linux/capability.h: capabilities as two sets of 32, each effective, permitted, inheritable.
_CAPABILITY_VERSION_3 = 0x20080522
#: What the kernel ends first where memory runs out: a child that somebody starts again.
_FIRST_TO_GO = "1000"
_RAISE = "--raise"
_PROBE_SECONDS = 30
_PROBE_BYTES = 256 * 1024 * 1024
#: Beyond the numbers that descriptors are moved to, and below every usual limit on them.
_ASIDE = 64


def raise_walls(memory_bytes: int) -> dict[str, str]:
    """Give up privileges, network, files and memory beyond ``memory_bytes`` more than now.

    Returns why the kernel refused, by the name of the wall: ``no_new_privileges``,
    ``no_network``, ``no_capabilities``. Empty where all walls stand. Needs a process of one thread.
    """
    refused: dict[str, str] = {}
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    _limit_memory(memory_bytes)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    for wall, give_up in (
        ("no_new_privileges", _give_up_new_privileges),
        ("no_network", _leave_network),
        # Last: leaving the network takes some, and a user namespace of one's own gives all.
        ("no_capabilities", _drop_capabilities),
    ):
        try:
            give_up()
        except (OSError, AttributeError) as error:
            refused[wall] = str(error)
    return refused


def keep_descriptors(*kept: int) -> list[int]:
    """Move descriptors to 3, 4, … and return their new numbers."""
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for fd in kept]
    for fd in kept:
        os.close(fd)
    moved = [os.dup2(fd, number, False) for number, fd in enumerate(aside, start=3)]
    for fd in aside:
        os.close(fd)
    return moved


def forbid_files(highest: int, *, more: int) -> None:
    """Let this process have only ``more`` descriptors above ``highest``: no file, no socket."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more,) * 2)


def arm_default_signals(signals: Sequence[signal.Signals]) -> None:
    """Let these signals end the process, whatever its parent ignored or blocked."""
    for number in signals:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def probe() -> dict[str, str]:
    """What :func:`raise_walls` answers on this machine, tried in a process of its own."""
    tried = subprocess.run(
        [sys.executable, "-I", __file__, _RAISE],
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=True,
    )
    refused: dict[str, str] = json.loads(tried.stdout)
    return refused


def _limit_memory(more_bytes: int) -> None:
    """Limit the address space, so that an allocation fails and nobody else is killed for it."""
    limit = _address_space() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _address_space() -> int:
    """Bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _give_up_new_privileges() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _leave_network() -> None:
    """Enter a network without interfaces, and users of its own, who are nobody outside.

    The user namespace also hides the environment and memory of every other process of this user.
    """
    try:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
    except OSError:
        # Where user namespaces are switched off, root can still leave the network alone.
        _call("unshare", _CLONE_NEWNET)


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    # Behind the walls nothing can be written but pipes, and the caller may want a file.
    answer = raise_walls(_PROBE_BYTES) if _RAISE in sys.argv else {"refused": probe()}
    sys.stdout.write(json.dumps(answer) + "\n")
