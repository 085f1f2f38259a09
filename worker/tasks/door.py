"""What every task does around its work: claim, keep the lease, and end well or badly."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from app.errors import DarkroomError, FencedError
from app.jobs.claim import Lease, claim_chunk, release_chunk
from app.jobs.record import record_cancelled, record_failure
from app.jobs.states import ChunkTask
from app.log import get_logger
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess

log = get_logger(__name__)

#: Wait before the same chunk is tried again after a fault that may pass, in seconds; grows
#: with each attempt.
_RETRY_SECONDS = 2.0
_RETRY_MAX_SECONDS = 60.0

Work = Callable[[WorkerProcess, HeldLease], None]


def open_door(
    process: WorkerProcess, task: ChunkTask, work: Work, *, chunk_id: str, tenant_id: str
) -> None:
    """Answer a bell: do the work of its chunk, if there is still any to do.

    A bell is only a hint. Old, doubled and forged ones find nothing to claim and change
    nothing.
    """
    if process.stopping.is_set():
        return
    with process.db.tenant(tenant_id) as session:
        lease = claim_chunk(
            session,
            tenant_id,
            chunk_id,
            worker_id=process.id,
            lease_seconds=process.settings.lease_seconds,
        )
    if lease is None:
        log.debug("bell_without_work", chunk=chunk_id)
        return
    with (
        structlog.contextvars.bound_contextvars(
            job=lease.job_id, chunk=lease.chunk_id, attempt=lease.attempt
        ),
        process.heartbeat.hold(lease) as held,
    ):
        _run(process, task, work, held)


def _run(process: WorkerProcess, task: ChunkTask, work: Work, held: HeldLease) -> None:
    lease = held.lease
    try:
        if lease.task is not task:
            # A forged bell that names the wrong door; the right one will be rung again.
            _release(process, lease, failed=False)
            return
        work(process, held)
    except FencedError:
        log.warning("lease_lost")
    except DarkroomError as error:
        log.warning("chunk_failed", code=error.code, detail=error.detail)
        if error.retryable:
            _release(process, lease, failed=True)
        else:
            _fail(process, lease, error)
    except Exception:
        # Not a fault that we know: another attempt may fare better, and the sweeper ends the
        # job if none does.
        log.exception("chunk_crashed")
        _release(process, lease, failed=True)


def let_go(process: WorkerProcess, held: HeldLease) -> None:
    """End work that was stopped with nothing to record, as its reason demands.

    Raises:
        FencedError: the lease was lost.
    """
    lease = held.lease
    if held.cancelled.is_set():
        with process.db.tenant(lease.tenant_id) as session:
            record_cancelled(session, lease)
    else:
        _release(process, lease, failed=False)


def _release(process: WorkerProcess, lease: Lease, *, failed: bool) -> None:
    delay = min(_RETRY_SECONDS * lease.attempt, _RETRY_MAX_SECONDS) if failed else 0.0
    with process.db.tenant(lease.tenant_id) as session:
        release_chunk(session, lease, delay_seconds=delay, failed=failed)


def _fail(process: WorkerProcess, lease: Lease, error: DarkroomError) -> None:
    try:
        with process.db.tenant(lease.tenant_id) as session:
            record_failure(session, lease, error.as_dict())
    except FencedError:
        log.warning("lease_lost")
