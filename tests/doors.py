"""A worker's inside in the test's own process, and work for its doors."""

from __future__ import annotations

from app.db.session import Database
from app.jobs.states import ChunkTask
from app.queues.names import Queue
from app.settings import Settings
from tests.jobs import record_all
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import Work, open_door

#: Seconds until what must come is given up.
PATIENCE = 10


def worker_inside(settings: Settings, queue: Queue, db: Database) -> WorkerProcess:
    """A worker's process without a process, on this database."""
    process = WorkerProcess(settings, queue)
    process.db.close()
    process.db = db
    return process


def ring(
    process: WorkerProcess,
    tenant_id: str,
    chunk_id: str,
    work: Work,
    task: ChunkTask = ChunkTask.PREDICT,
) -> None:
    """A bell for the chunk, with this work behind the door."""
    open_door(process, task, work, chunk_id=chunk_id, tenant_id=tenant_id)


def never(_process: WorkerProcess, _held: HeldLease) -> None:
    """Work that must not begin."""
    raise AssertionError("there is no work to do")


def failing(error: Exception) -> Work:
    """Work that raises the error."""

    def work(_process: WorkerProcess, _held: HeldLease) -> None:
        raise error

    return work


def do_it(process: WorkerProcess, held: HeldLease) -> None:
    """Work that records every item of its chunk."""
    record_all(process.db, held.lease)
