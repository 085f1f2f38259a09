"""What a worker tells Prometheus: what it did, what it holds, and how long nothing has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from app.clock import monotonic_seconds
from app.gauges import make_registry
from app.jobs.states import ChunkTask

if TYPE_CHECKING:
    from worker.process import WorkerProcess


class WorkerGauges:
    """Counters of one process; they begin anew when it is started again."""

    def __init__(self, process: WorkerProcess) -> None:
        self.registry = make_registry()
        self._chunks = Counter(
            "darkroom_worker_chunks",
            "Leases that ended here: done (also where only a part was), failed, lost, left.",
            ["task", "ended"],
            registry=self.registry,
        )
        self._items = Counter(
            "darkroom_worker_items", "Items that went through the pipeline.", registry=self.registry
        )
        self._stages = Counter(
            "darkroom_worker_stage_seconds",
            "Seconds that each stage was busy; stages overlap.",
            ["stage"],
            registry=self.registry,
        )
        held = Gauge("darkroom_worker_leases_held", "Leases held now.", registry=self.registry)
        held.set_function(lambda: len(process.heartbeat.held))
        busy = Gauge("darkroom_worker_slots_busy", "Bells being answered.", registry=self.registry)
        busy.set_function(lambda: process.hearing.busy)
        still = Gauge(
            "darkroom_worker_still_seconds",
            "Seconds since a step of the slowest held lease ended; 0 where none is held.",
            registry=self.registry,
        )
        still.set_function(lambda: _still_seconds(process))

    def add_chunk(self, task: ChunkTask, ended: str) -> None:
        """Count a lease that ended."""
        self._chunks.labels(task.value, ended).inc()

    def add_items(self, count: int, *, fetch: float, decode: float, forward: float) -> None:
        """Count the items of one run through the pipeline, and its stages' seconds."""
        self._items.inc(count)
        for stage, seconds in (("fetch", fetch), ("decode", decode), ("forward", forward)):
            self._stages.labels(stage).inc(seconds)


def _still_seconds(process: WorkerProcess) -> float:
    now = monotonic_seconds()
    return max((now - held.moved_at for held in process.heartbeat.held), default=0.0)
