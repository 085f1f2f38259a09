"""A worker: ``python -m worker.main --role inference|training|io``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_shutdown, worker_shutting_down

from app.collector import spare_the_collector
from app.errors import SettingsError, UnavailableError
from app.gauges import serve_gauges
from app.jobs.states import ChunkTask
from app.log import configure_logging, get_logger
from app.queues.bells import use_bell_transport
from app.queues.celery import make_celery
from app.queues.names import SLOTS_OF_QUEUE, Queue, celery_task_name
from app.settings import Settings, load_settings
from app.startup import check_start
from worker.exits import ExitCode, leave
from worker.process import WorkerProcess
from worker.tasks.door import Work, open_door
from worker.watchdog import Watchdog

log = get_logger(__name__)


#: Each queue's tasks and the function that does them. Named, not imported: only a worker that
#: needs torch loads it.
_DOORS: Mapping[Queue, Mapping[ChunkTask, str]] = {
    Queue.INFERENCE: {
        ChunkTask.PREDICT: "worker.tasks.predict:predict_chunk",
        ChunkTask.EVALUATE: "worker.tasks.evaluate:evaluate_chunk",
        ChunkTask.IMPORT: "worker.tasks.import_weights:import_chunk",
    },
    Queue.TRAINING: {
        ChunkTask.FINETUNE: "worker.tasks.finetune:finetune_chunk",
        ChunkTask.TRIAL: "worker.tasks.trial:trial_chunk",
    },
    Queue.IO: {
        ChunkTask.PLAN: "worker.tasks.plan:plan_chunk",
        ChunkTask.INGEST: "worker.tasks.ingest:ingest_chunk",
        ChunkTask.EXPORT: "worker.tasks.export:export_chunk",
    },
}


def make_worker(settings: Settings, queue: Queue) -> tuple[Celery, WorkerProcess]:
    """The Celery application of one queue with its doors, and the process behind them."""
    use_bell_transport()
    app = make_celery(settings)
    process = WorkerProcess(settings, queue)
    for task, path in _DOORS[queue].items():
        app.task(_door(process, task, _load(path)), name=celery_task_name(task), shared=False)
    return app, process


def _load(path: str) -> Work:
    module, _, name = path.partition(":")
    work: Work = getattr(importlib.import_module(module), name)
    return work


def _door(process: WorkerProcess, task: ChunkTask, work: Work) -> Callable[[str, str], None]:
    def door(chunk_id: str, tenant_id: str) -> None:
        open_door(process, task, work, chunk_id=chunk_id, tenant_id=tenant_id)

    return door


def _connect_signals(process: WorkerProcess, watchdog: Watchdog) -> None:
    """Tie the process's life to Celery's. ``weak=False``: nobody else holds these functions."""

    def keep_our_logging(**_: Any) -> None:
        """Only by being connected does this keep Celery from setting up logging."""

    def stop(**_: Any) -> None:
        # At SIGTERM, before Celery waits for running tasks: they let go between ImageBatches.
        process.stopping.set()
        _leave_at_last(process)

    def close(**_: Any) -> None:
        watchdog.close()
        process.close()
        log.info("worker_stopped", worker=process.id)

    # As if told from outside: the warm shutdown of Celery.
    process.on_replaced = lambda: os.kill(os.getpid(), signal.SIGTERM)
    setup_logging.connect(keep_our_logging, weak=False)
    worker_shutting_down.connect(stop, weak=False)
    worker_shutdown.connect(close, weak=False)


def _leave_at_last(process: WorkerProcess) -> None:
    """End the process once the drain time is over, whatever still runs.

    What does not let go in time is given back: being told to stop is no kill.
    """

    def leave_at_last() -> None:
        log.error(
            "drain_time_over", chunks=[held.lease.chunk_id for held in process.heartbeat.held]
        )
        process.heartbeat.give_back()
        leave(ExitCode.DRAIN_OVER)

    timer = threading.Timer(process.settings.drain_seconds, leave_at_last)
    timer.daemon = True
    timer.start()


def _leave_early(_signal: int, _frame: FrameType | None) -> None:
    """End well a process that is told to stop while it starts: it holds nothing yet."""
    raise SystemExit(0)


def _start(process: WorkerProcess, app: Celery) -> None:
    """Check the parts and register the worker, or end the process with a sentence.

    Here and not in Celery's ``worker_init``: Celery only logs what a receiver raises and goes
    on, and a worker that does not beat loses every chunk that it takes.
    """
    try:
        check_start(process.settings, process.db, app)
        process.start()
    except (SettingsError, UnavailableError) as error:
        log.error("worker_not_started", code=error.code, detail=error.detail)
        raise SystemExit(1) from None
    log.info("worker_started", worker=process.id, name=process.name, device=process.device)


def main() -> None:
    """Serve one queue until told to stop.

    Exits with 1 where the database does not answer, its schema is of another version or the parts
    are not durable, and with an :class:`ExitCode` where it ends itself.
    """
    parser = argparse.ArgumentParser(description="A Darkroom worker.")
    parser.add_argument("--role", required=True, choices=[queue.value for queue in Queue])
    arguments = parser.parse_args()
    settings = load_settings()
    configure_logging(settings.log_level, json=settings.log_format == "json")
    logging.getLogger("celery").setLevel(logging.WARNING)
    logging.getLogger("kombu").setLevel(logging.WARNING)
    # Celery warns of root because of pickle, which is refused here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    os.nice(settings.niceness)
    queue = Queue(arguments.role)
    if queue is Queue.TRAINING:
        # A step of a small network lasts milliseconds. Threads that spin while they wait for each
        # other make it ten times as long once anything else wants a core.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Celery's own comes much later, after torch and the registration.
    signal.signal(signal.SIGTERM, _leave_early)
    app, process = make_worker(settings, queue)
    watchdog = Watchdog(process)
    _connect_signals(process, watchdog)
    _start(process, app)
    watchdog.start()
    serve_gauges(settings, process.gauges.registry)
    spare_the_collector()
    app.worker_main(
        [
            # Our log lines say who started; no banner.
            "--quiet",
            "worker",
            # Threads: prefork children may have no children, and do not drain in time.
            "--pool=threads",
            f"--concurrency={SLOTS_OF_QUEUE[queue]}",
            f"--queues={queue.value}",
            f"--hostname={process.id}@{process.host}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


if __name__ == "__main__":
    main()
