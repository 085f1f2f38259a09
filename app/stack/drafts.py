"""A folder that is made under another name and gets its own only once it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.stack.processes import AlreadyRunningError


@contextmanager
def draft_of(
    target: Path, *, ending: str, make_room: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A private folder beside ``target``, renamed to it when the block ends well, else removed.

    One that a killed process left is cleared and used again. ``make_room`` is called just
    before the rename, once all else has gone well.

    Raises:
        AlreadyRunningError: another process writes the same target.
        OSError: something non-empty has taken the target's name meanwhile.
    """
    draft = target.with_name(f".{target.name}.{ending}")
    draft.mkdir(mode=0o700, exist_ok=True)
    # The kernel gives the lock back however we end, so a held one means a living process.
    lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                f"another command is writing {target}; wait until it has ended"
            ) from None
        try:
            for left in draft.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield draft
            # Once for all files: one by one would take many times as long.
            os.sync()
            make_room()
            draft.rename(target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
