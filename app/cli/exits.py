"""What the exit codes of every command mean; README quotes this table."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """How a command ended, for scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    UNREACHABLE = 4
    REFUSED = 5
    CANCELLED = 6
    TIMEOUT = 7
    FOLDER_IN_USE = 8
    PORT_TAKEN = 9
    DISK_FULL = 10
    EXPIRED = 11
    FAULT = 70
    INTERRUPTED = 130


EXIT_CODES: dict[Exit, str] = {
    Exit.DONE: "done; a watched job succeeded",
    Exit.FAILED: "the job failed, a check failed, or a file could not be read or written",
    Exit.USAGE: "the command line is wrong",
    Exit.PARTIAL: "done in part: some images failed, or a backup found objects lost",
    Exit.UNREACHABLE: "no Darkroom, or a part it needs, could be reached",
    Exit.REFUSED: "the service refused: wrong input, no such thing, no right to it",
    Exit.CANCELLED: "the job was cancelled",
    Exit.TIMEOUT: "`--timeout` passed; the job goes on",
    Exit.FOLDER_IN_USE: "another command works on this data folder",
    Exit.PORT_TAKEN: "`darkroom up`: the port is taken",
    Exit.DISK_FULL: "the disk is full",
    Exit.EXPIRED: "the job's deadline passed before its end",
    Exit.FAULT: "a fault of the command itself",
    Exit.INTERRUPTED: "stopped by Ctrl-C; a submitted job goes on",
}

#: The state of a finished job → the exit code of the command that watched it.
EXIT_OF_STATE: dict[str, Exit] = {
    "succeeded": Exit.DONE,
    "partially_succeeded": Exit.PARTIAL,
    "failed": Exit.FAILED,
    "expired": Exit.EXPIRED,
    "cancelled": Exit.CANCELLED,
}
