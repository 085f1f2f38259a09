"""Become another program that ends when its supervisor dies: ``python -m app.stack.child``.

The kernel sends SIGTERM the moment the parent is gone, so a supervisor killed with -9 leaves
children that drain by themselves. Set here, in the child itself, because running Python
between fork and exec of a process with threads may deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to the parent whose pid comes first, then run the command after it."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        # It died before the tie held; nobody would ever tell us.
        sys.exit(0)
    os.execv(command[0], command)  # noqa: S606 - that is the point: no shell, our own command


if __name__ == "__main__":
    main(sys.argv[1:])
