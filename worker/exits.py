"""How a worker ends that cannot end well: its exit codes, and its last words."""

from __future__ import annotations

import enum
import os
import sys
import threading
import traceback


class ExitCode(enum.IntEnum):
    """Why a worker ended by itself; whoever supervises it starts it again after each."""

    #: The drain time was over and something still ran; what it held is given back.
    DRAIN_OVER = 1
    #: Nothing finished within the stall time; its leases end by themselves and count as kills.
    STALLED = 70
    #: Bells lay in its queue and it heard none; what it held is given back.
    DEAF = 71
    #: Its device does not work any more in this process; counts as a kill.
    DEVICE_BROKEN = 72


def leave(code: ExitCode) -> None:
    """End the process here and now, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def all_stacks() -> dict[str, list[str]]:
    """What every thread is doing, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, '?')} ({ident})": [
            f"{entry.filename}:{entry.lineno} {entry.name}: {entry.line}"
            for entry in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
    }
