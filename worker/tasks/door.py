"""What every task does around its work: claim, keep the lease, and end well or badly."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from app.errors import DarkroomError, FencedError, UnavailableError
from app.jobs.claim import Lease, claim_chunk, kills_so_far, release_chunk
from app.jobs.record import record_failure, record_stopped
from app.jobs.states import ChunkTask
from app.log import get_logger
from app.points import reach
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess

log = get_logger(__name__)

#: Wait before the same chunk is tried again after a fault that may pass: this, then three
#: times as long after every further one. With five tries a part may be down for a minute.
_RETRY_SECONDS = 2.0
_RETRY_MAX_SECONDS = 60.0

Work = Callable[[WorkerProcess, HeldLease], None]

_CRASHED = UnavailableError(
    "a worker met a fault it does not know, again and again; its log says which",
    code="internal_error",
)


def open_door(
    process: WorkerProcess, task: ChunkTask, work: Work, *, chunk_id: str, tenant_id: str
) -> None:
    """Answer a bell: do the work of its chunk, if there is still any to do.

    A bell is only a hint. Old, doubled and forged ones find nothing to claim and change
    nothing; one that comes while the process stops is rung again for another.
    """
    reach("after_pop")
    if process.stopping.is_set():
        return
    try:
        with process.db.tenant(tenant_id) as session:
            lease = claim_chunk(
                session,
                tenant_id,
                chunk_id,
                task=task,
                worker_id=process.id,
                lease_seconds=process.settings.lease_seconds,
            )
    except UnavailableError as error:
        log.warning("bell_not_answered", code=error.code, detail=error.detail)
        return
    if lease is None:
        log.debug("bell_without_work", chunk=chunk_id)
        return
    with (
        structlog.contextvars.bound_contextvars(
            job=lease.job_id, chunk=lease.chunk_id, attempt=lease.attempt
        ),
        process.heartbeat.hold(lease) as held,
    ):
        reach("after_claim")
        try:
            _run(process, work, held)
        except FencedError:
            log.warning("lease_lost")
        except UnavailableError as error:
            # Not even the end could be written. The lease ends by itself, then the sweeper
            # frees the chunk.
            log.warning("lease_left", code=error.code, detail=error.detail)
    reach("before_ack")


def _run(process: WorkerProcess, work: Work, held: HeldLease) -> None:
    try:
        work(process, held)
    except FencedError:
        raise
    except DarkroomError as error:
        log.warning("chunk_failed", code=error.code, detail=error.detail)
        _end_badly(process, held.lease, error)
    except Exception:
        # Not a fault that we know: another attempt may fare better.
        log.exception("chunk_crashed")
        _end_badly(process, held.lease, _CRASHED)


def let_go(process: WorkerProcess, held: HeldLease) -> None:
    """End work that was stopped with nothing to record, as its reason demands.

    Raises:
        FencedError: the lease was lost.
    """
    lease = held.lease
    if held.cancelled.is_set():
        with process.db.tenant(lease.tenant_id) as session:
            record_stopped(session, lease)
    else:
        with process.db.tenant(lease.tenant_id) as session:
            release_chunk(session, lease)


def _end_badly(process: WorkerProcess, lease: Lease, error: DarkroomError) -> None:
    """Give the chunk back for another try, or fail the job where no try is left or of use."""
    with process.db.tenant(lease.tenant_id) as session:
        kills = kills_so_far(session, lease)
        if kills is None:
            log.warning("lease_lost")
        elif error.retryable and kills + 1 < process.settings.max_kills:
            release_chunk(session, lease, delay_seconds=_delay(kills), failed=True)
        else:
            # With the fault itself: more than the sweeper, which only counts, could tell.
            record_failure(session, lease, error.as_dict())


def _delay(kills: int) -> float:
    return float(min(_RETRY_SECONDS * 3 ** min(kills, 10), _RETRY_MAX_SECONDS))
