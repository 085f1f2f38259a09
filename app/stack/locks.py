"""Who holds a data folder: one supervisor, and the children of a killed one until they let go."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from app.clock import monotonic_seconds
from app.stack.processes import AlreadyRunningError

_LOOK_SECONDS = 0.1


class FolderLock:
    """The supervisor's right to a data folder; the kernel gives it back however we end.

    Two files. ``up.lock`` is ours alone and holds our pid and what we do. ``children.lock`` is
    inherited by every child: after a kill -9 of the supervisor it stays held until the last
    child has drained, so the next supervisor knows when ports and leases are free without any
    list of pids.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._own: int | None = None
        self._shared: int | None = None

    @property
    def shared_descriptor(self) -> int:
        """What children inherit."""
        assert self._shared is not None
        return self._shared

    def acquire(self, *, patience_seconds: float, doing: str = "Darkroom") -> None:
        """Take the folder; waits only for children that an earlier supervisor left.

        ``doing`` is what the next one is told to wait for or to stop.

        Raises:
            AlreadyRunningError: another supervisor runs, or such children do not end in time.
        """
        self._own = os.open(self._data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not _try_lock(self._own):
            pid, _, what = os.pread(self._own, 64, 0).decode("ascii", "replace").partition("\n")
            self.release()
            raise AlreadyRunningError(
                f"{what.strip() or 'Darkroom'} already runs on {self._data_dir} (pid "
                f"{pid or 'unknown'}); stop that one, or choose another folder with --data"
            )
        os.ftruncate(self._own, 0)
        os.pwrite(self._own, f"{os.getpid()}\n{doing}\n".encode("ascii"), 0)
        self._shared = os.open(self._data_dir / "children.lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = monotonic_seconds() + patience_seconds
        pause = threading.Event()
        while not _try_lock(self._shared):
            if monotonic_seconds() > deadline:
                self.release()
                raise AlreadyRunningError(
                    f"processes of an earlier run still work on {self._data_dir} after "
                    f"{patience_seconds:.0f} s; `fuser {self._data_dir}/children.lock` names "
                    "them: end them, then start again"
                )
            # The kernel tells nobody when a lock comes free; a blocking wait knows no limit.
            pause.wait(_LOOK_SECONDS)

    def release(self) -> None:
        """Give the folder back; does nothing where it is not held."""
        for descriptor in (self._shared, self._own):
            if descriptor is not None:
                os.close(descriptor)
        self._shared = self._own = None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
