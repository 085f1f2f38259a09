"""Cut a job's input into chunks."""

from __future__ import annotations

from app.jobs.plan import plan_job
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import let_go


def plan_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Plan the job; a long input is committed part by part."""
    planned = plan_job(
        process.db,
        process.store,
        process.settings,
        held.lease,
        should_stop=held.should_stop,
        on_look=held.move,
    )
    if not planned:
        let_go(process, held)
