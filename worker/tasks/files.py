"""Files without a name: no other process finds them, and nothing of them outlives this one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path


@contextmanager
def memory_file() -> Iterator[BufferedRandom]:
    """An empty file in memory: where sealed weights are opened, since no disk may hold them.

    What maps it keeps its bytes after the block. The kernel may swap it out like any memory.
    """
    with os.fdopen(os.memfd_create("darkroom"), "w+b") as file:
        yield file


@contextmanager
def unnamed_file() -> Iterator[BufferedRandom]:
    """An empty file on disk: for what a client sent in clear, of any size, while it is checked."""
    with tempfile.TemporaryFile() as file:
        yield file


def path_of(file: BufferedRandom) -> Path:
    """A path by which this process opens the file again; what was written is flushed."""
    file.flush()
    return Path(f"/proc/self/fd/{file.fileno()}")
