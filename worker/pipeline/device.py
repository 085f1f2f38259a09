"""What a device is called, and how long it computed: speeds of equal devices can be summed."""

from __future__ import annotations

import platform
from pathlib import Path
from types import TracebackType

import torch

from worker.pipeline.timing import Stopwatch

_CPU_INFO = Path("/proc/cpuinfo")


def describe_device(device: str) -> str:
    """``NVIDIA H200, float32``, or the processor with the threads that torch computes in."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, float32"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s'[: threads != 1]}, float32"


def _processor() -> str:
    """The processor's name; of one that tells none, its instruction set."""
    try:
        lines = _CPU_INFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.machine() or "cpu"


class DeviceWatch:
    """Seconds that a device computed inside the ``with`` blocks, summed.

    On CUDA a call returns before its work is done: events in the device's stream tell when that
    began and ended, and nothing waits for them until ``seconds`` is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._watch = Stopwatch()
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> DeviceWatch:
        if self._device.type == "cuda":
            self._mark()
        else:
            self._watch.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self._mark()
        else:
            self._watch.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """The sum so far; waits for the device."""
        if not self._events:
            return self._watch.seconds
        self._events[-1].synchronize()
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        milliseconds: float = sum(start.elapsed_time(end) for start, end in pairs)
        return milliseconds / 1000

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)
