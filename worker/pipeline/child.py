"""One decode child as its parent sees it: process, socket and shared memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from app.errors import ItemError, UnavailableError
from app.models.spec import PreprocessSpec
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.wire import (
    DECODED,
    WireClosedError,
    receive_bytes,
    receive_frame,
    send_frame,
)

_START_SECONDS = 60.0
#: A process whose socket is closed is gone, or about to be.
_END_SECONDS = 5.0
#: Codes a child may give; anything else it says counts as undecodable.
_CHILD_CODES = frozenset({"empty", "undecodable", "truncated", "unsupported_format", "too_large"})
#: All the environment a child gets: it handles hostile bytes, so no credentials.
_CHILD_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
_ROOT = Path(__file__).resolve().parents[2]


class ChildDiedError(Exception):
    """The child ended before it answered."""


class ChildTimeoutError(Exception):
    """One image took more time than it may, by the clock or of the processor."""


class ChildProcess:
    """A place for one decode child, which may be replaced; used by one thread at a time."""

    def __init__(self, command: Sequence[str], limits: DecodeLimits) -> None:
        self._command = tuple(command)
        self._limits = limits
        #: Why the kernel refused some of the walls, by their names.
        self.refused_walls: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        #: Buffered: the answers of a run of tiny images come many in one read.
        self._replies: BinaryIO | None = None
        self._memory_fd = -1
        self._memory: mmap.mmap | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child that runs now, if one does."""
        process = self._process
        return process.pid if process is not None else None

    def ensure(self) -> None:
        """Have a live child: start one where there is none."""
        if self._process is None:
            self.launch()
            self.await_ready()

    def launch(self) -> None:
        """Start the process without waiting for it. Raises UnavailableError where none can be."""
        try:
            self._launch()
        except OSError as error:
            # Out of processes, memory or descriptors: it may pass.
            self.dispose()
            raise UnavailableError(f"a decode process does not start: {error}") from error

    def _launch(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._replies = self._socket.makefile("rb")
        environment = {name: os.environ[name] for name in _CHILD_ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = str(_ROOT)
        # Nothing is imported from the folder it starts in.
        environment["PYTHONSAFEPATH"] = "1"
        # One heap: each further one reserves address space, which the child limits.
        environment["MALLOC_ARENA_MAX"] = "1"
        with theirs:
            self._memory_fd = _shared_memory()
            self._process = subprocess.Popen(
                [
                    *self._command,
                    f"--socket-fd={theirs.fileno()}",
                    f"--memory-fd={self._memory_fd}",
                    f"--limits={self._limits.as_json()}",
                ],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory_fd),
            )

    def await_ready(self) -> None:
        """Wait until the child serves. Raises UnavailableError where it does not."""
        assert self._socket is not None
        assert self._replies is not None
        self._socket.settimeout(_START_SECONDS)
        try:
            ready = receive_frame(self._replies)
        except (OSError, WireClosedError) as error:
            self.dispose()
            raise UnavailableError(f"a decode process does not start: {error}") from error
        self._socket.settimeout(self._limits.item_seconds)
        self.refused_walls = ready.get("refused") or {}

    def send_run(self, images: list[bytes], spec: PreprocessSpec) -> None:
        """Hand a run of image files to the child. Raises ChildDiedError where it is not taken."""
        assert self._socket is not None
        size = self._grow_memory(len(images) * _slot_bytes(spec))
        header = {
            "spec": spec.as_dict(),
            "lengths": [len(data) for data in images],
            "memory_bytes": size,
        }
        try:
            send_frame(self._socket, header, images)
        except OSError as error:
            # A child that does not even take the run is at fault itself, not an image.
            raise ChildDiedError from error

    def receive_error(self) -> ItemError | None:
        """Wait for the run's next image: None when its pixels are ready, else its error.

        Raises:
            ChildDiedError: the child ended.
            ChildTimeoutError: the image took more than its time.
        """
        assert self._replies is not None
        try:
            if receive_bytes(self._replies, 1) == DECODED:
                return None
            reply = receive_frame(self._replies)
        except TimeoutError:
            raise ChildTimeoutError(
                f"decoding took longer than {self._limits.item_seconds:g} seconds"
            ) from None
        except OSError as error:
            if self._ended_by(signal.SIGPROF):
                seconds = self._limits.cpu_seconds
                raise ChildTimeoutError(
                    f"decoding took more than {seconds:g} seconds of the processor"
                ) from None
            raise ChildDiedError from error
        code = reply.get("code")
        return ItemError(
            str(reply.get("detail", "the image cannot be decoded")),
            code=code if code in _CHILD_CODES else "undecodable",
        )

    def pixels_at(self, position: int, spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
        """A copy of the pixels of the run's image at ``position``, uint8 [h, w, 3]."""
        assert self._memory is not None
        size = _slot_bytes(spec)
        data = self._memory[position * size : (position + 1) * size]
        return np.frombuffer(data, np.uint8).reshape(spec.output_shape)

    def _ended_by(self, number: signal.Signals) -> bool:
        """Whether the child, whose socket is closed, was ended by this signal."""
        assert self._process is not None
        try:
            return self._process.wait(_END_SECONDS) == -number
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """End the process at once; safe from any thread, frees nothing."""
        process = self._process
        if process is not None:
            process.kill()

    def dispose(self) -> None:
        """End the process and free what belongs to it; :meth:`ensure` starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._replies is not None:
            self._replies.close()
            self._replies = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def _grow_memory(self, needed: int) -> int:
        """Map at least ``needed`` bytes; the size both sides map."""
        if self._memory is None or len(self._memory) < needed:
            os.ftruncate(self._memory_fd, needed)
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self._memory_fd, needed)
        return len(self._memory)


def _slot_bytes(spec: PreprocessSpec) -> int:
    height, width, channels = spec.output_shape
    return height * width * channels


def _shared_memory() -> int:
    """A descriptor of memory without a name, so that nothing is left behind by a crash."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("darkroom-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # A child must not shrink it under us: reading past the end would kill the worker.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return fd
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
