"""Decode processes that live on: runs of image files in, uint8 pixels out.

A run goes to one child over a socket; pixels come back through memory that both sides map
and nothing names. A child that dies is replaced and what it left undone is tried again one
image by one, so a hostile file costs itself and never its neighbours.
"""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from app.errors import DarkroomError, ItemError, TooLargeError, UnavailableError
from app.models.spec import PreprocessSpec
from worker.pipeline.child import ChildDiedError, ChildProcess, ChildTimeoutError
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

CHILD_COMMAND = (sys.executable, "-m", "worker.pipeline.decode_child")
_KILL_AGAIN_SECONDS = 0.1
#: Deaths with one image alone that show it is the image: a single one may be somebody's kill.
_DEATHS_ALONE = 2


@dataclass(frozen=True, slots=True)
class DecodedRun:
    """Pixels of a run, uint8 [n, height, width, 3]; rows with an error hold nothing."""

    pixels: npt.NDArray[np.uint8]
    errors: list[DarkroomError | None]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Run:
    """A run in hand: what goes in, and the rows and errors that fill up."""

    images: Sequence[bytes]
    spec: PreprocessSpec
    pixels: npt.NDArray[np.uint8]
    errors: list[DarkroomError | None]

    def take(self, slot: ChildProcess, group: list[int]) -> None:
        """Copy the pixels of a group's decoded images out of the child's memory."""
        for position, index in enumerate(group):
            if self.errors[index] is None:
                self.pixels[index] = slot.pixels_at(position, self.spec)


class DecodePool:
    """A fixed number of decode children; any number of threads may use it at once."""

    def __init__(
        self,
        processes: int,
        max_bytes: int,
        limits: DecodeLimits,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        if processes < 1:
            raise ValueError("a decode pool needs at least one process")
        self.processes = processes
        self.max_bytes = max_bytes
        self._slots = [ChildProcess(command, limits) for _ in range(processes)]
        self._idle: queue.SimpleQueue[ChildProcess] = queue.SimpleQueue()
        for slot in self._slots:
            self._idle.put(slot)
        self._closed = False

    @classmethod
    def start(
        cls,
        processes: int,
        max_bytes: int,
        limits: DecodeLimits,
        *,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> DecodePool:
        """Start the children together and wait until each is ready.

        Raises:
            UnavailableError: a child does not start.
        """
        pool = cls(processes, max_bytes, limits, command)
        try:
            for slot in pool._slots:
                slot.launch()
            for slot in pool._slots:
                slot.await_ready()
            _tell_of_refused_walls(pool._slots[0].refused_walls)
        except BaseException:
            pool.close()
            raise
        return pool

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def child_pids(self) -> list[int]:
        """Process ids of the children that run now."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def close(self) -> None:
        """End the children; a run in flight in another thread gets UnavailableError."""
        if self._closed:
            return
        self._closed = True
        for _ in self._slots:
            self._take_killed().dispose()
        for slot in self._slots:
            # Whoever still waits for a slot gets one, and with it the error.
            self._idle.put(slot)

    def _take_killed(self) -> ChildProcess:
        """A slot of a pool that closes, once its thread has put it back."""
        while True:
            for slot in self._slots:
                # Wakes the thread that waits on it. Again each time, as a thread may have been
                # about to start another child.
                slot.kill()
            try:
                return self._idle.get(timeout=_KILL_AGAIN_SECONDS)
            except queue.Empty:
                continue

    def decode(self, images: Sequence[bytes], spec: PreprocessSpec) -> DecodedRun:
        """Decode a run of image files in one child; each image gets pixels or an error.

        Raises:
            UnavailableError: the pool was closed, or no child can be started.
        """
        pixels = np.empty((len(images), *spec.output_shape), np.uint8)
        errors: list[DarkroomError | None] = [self._oversize(data) for data in images]
        todo = [index for index, error in enumerate(errors) if error is None]
        if not todo:
            return DecodedRun(pixels, errors, 0.0)
        slot = self._idle.get()
        try:
            with Stopwatch() as watch:
                run = _Run(images, spec, pixels, errors)
                self._decode_on(slot, run, todo)
        finally:
            self._idle.put(slot)
        return DecodedRun(pixels, errors, watch.seconds)

    def _decode_on(self, slot: ChildProcess, run: _Run, todo: list[int]) -> None:
        """Decode the images at ``todo`` of a run, replacing the child as often as it dies."""
        one_by_one = False
        deaths = 0
        while todo:
            self._require_open()
            group = todo[:1] if one_by_one else todo
            finished = 0
            try:
                slot.ensure()
                slot.send_run([run.images[index] for index in group], run.spec)
                for index in group:
                    run.errors[index] = slot.receive_error()
                    finished += 1
            except ChildTimeoutError as error:
                run.take(slot, group[:finished])
                slot.dispose()
                run.errors[group[finished]] = ItemError(str(error), code="decode_timeout")
                finished += 1
            except ChildDiedError:
                self._require_open()
                run.take(slot, group[:finished])
                slot.dispose()
                if one_by_one:
                    deaths += 1
                    if deaths == _DEATHS_ALONE:
                        run.errors[group[0]] = ItemError(
                            "the image ends the process that decodes it"
                        )
                        finished = 1
                one_by_one = True
            else:
                run.take(slot, group)
            if finished:
                deaths = 0
            todo = todo[finished:]

    def _oversize(self, data: bytes) -> DarkroomError | None:
        if len(data) <= self.max_bytes:
            return None
        return TooLargeError(f"{len(data)} bytes are more than the limit of {self.max_bytes} bytes")

    def _require_open(self) -> None:
        if self._closed:
            raise UnavailableError("the decode pool is closed")


def _tell_of_refused_walls(refused: dict[str, str]) -> None:
    """Say once what the kernel refused: the same command on the same machine is refused alike."""
    if refused:
        log.warning(
            "decode processes run without some of their walls: %s",
            "; ".join(f"{wall} ({why})" for wall, why in refused.items()),
        )
