"""What every task does around its work: claim, keep the lease, and end well or badly."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy.orm import Session

from app.clock import monotonic_seconds
from app.errors import DarkroomError, FencedError, StorageAwayError, UnavailableError
from app.jobs.claim import (
    NARROW_AT,
    Lease,
    claim_chunk,
    faults_so_far,
    release_chunk,
    suspect_kills,
)
from app.jobs.narrow import narrow_failing_chunk
from app.jobs.progress import get_job
from app.jobs.record import record_failure, record_stopped
from app.jobs.states import ChunkTask
from app.log import get_logger
from app.points import reach
from app.settings import Settings
from worker.exits import ExitCode, leave
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess

log = get_logger(__name__)

#: Wait before the same chunk is tried again after a fault that may pass: this, then three
#: times as long after every further one. With five tries a part may be down for a minute.
_RETRY_SECONDS = 2.0
_RETRY_MAX_SECONDS = 60.0

#: Between two tries to end work while the database is away.
_AGAIN_SECONDS = 1.0

#: A suspect waits so long for the worker's other chunks to end. Many chunks' time, so that it
#: gets its turn beside recognition; a fraction of what an ingest of hours takes.
_PATIENCE_SECONDS = 30.0

Work = Callable[[WorkerProcess, HeldLease], None]

_DISK_FULL = UnavailableError(
    "the worker's own disk is full: weights and files in the making need room there",
    code="storage_full",
)
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
    with process.hearing.answering():
        reach("after_pop")
        _answer(process, task, work, chunk_id, tenant_id)


def _answer(
    process: WorkerProcess, task: ChunkTask, work: Work, chunk_id: str, tenant_id: str
) -> None:
    claim = partial(_claim, process, task, chunk_id=chunk_id, tenant_id=tenant_id)
    with process.gate.together() as entered:
        if not entered or process.stopping.is_set():
            return
        answer = claim(kills=0)
        if isinstance(answer, Lease):
            _work(process, work, answer)
            return
    if answer is None:
        return
    with process.gate.alone(_PATIENCE_SECONDS) as passage:
        # Where it is not this one's turn within that time, the bell is rung again.
        if passage is None or process.stopping.is_set():
            return
        answer = claim(kills=answer)
        if isinstance(answer, Lease):
            log.warning("suspect_runs_alone", chunk=chunk_id)
            _work(process, work, answer, on_recorded=passage.share)


def _claim(
    process: WorkerProcess, task: ChunkTask, *, chunk_id: str, tenant_id: str, kills: int
) -> Lease | int | None:
    """The chunk's lease; or its kills, where it is a suspect that killed more often than that."""
    try:
        with process.db.tenant(tenant_id) as session:
            lease = claim_chunk(
                session,
                tenant_id,
                chunk_id,
                task=task,
                worker_id=process.id,
                lease_seconds=process.settings.lease_seconds,
                kills=kills,
            )
            if lease is not None:
                return lease
            killed = suspect_kills(session, tenant_id, chunk_id)
    except UnavailableError as error:
        log.warning("bell_not_answered", code=error.code, detail=error.detail)
        return None
    if killed > kills:
        return killed
    log.debug("bell_without_work", chunk=chunk_id)
    return None


def _work(
    process: WorkerProcess,
    work: Work,
    lease: Lease,
    on_recorded: Callable[[], None] = lambda: None,
) -> None:
    with (
        structlog.contextvars.bound_contextvars(
            job=lease.job_id, chunk=lease.chunk_id, attempt=lease.attempt
        ),
        process.heartbeat.hold(lease, on_recorded) as held,
    ):
        reach("after_claim")
        ended = "done"
        try:
            if not _run(process, work, held):
                ended = "failed"
        except FencedError:
            ended = "lost"
            log.warning("lease_lost")
        except UnavailableError as error:
            ended = "left"
            # Not even the end could be written. The lease ends by itself, then the sweeper
            # frees the chunk.
            log.warning("lease_left", code=error.code, detail=error.detail)
        process.gauges.add_chunk(lease.task, ended)
    reach("before_ack")


def _run(process: WorkerProcess, work: Work, held: HeldLease) -> bool:
    """Do the work; False where it failed and its chunk was ended badly."""
    try:
        work(process, held)
        return True
    except FencedError:
        raise
    except DarkroomError as error:
        log.warning("chunk_failed", code=error.code, detail=error.detail)
        _end_badly(process, held, error)
    except Exception as error:
        if process.device.startswith("cuda") and breaks_device(error):
            # Nothing computes in this process any more. As a kill, so that an item that brings
            # it about is found.
            log.critical("device_broken", device=process.device, exc_info=error)
            leave(ExitCode.DEVICE_BROKEN)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # Known well, and no item's fault: its chunk is not narrowed, and people make room.
            log.warning("chunk_failed", code=_DISK_FULL.code, detail=str(error))
            _end_badly(process, held, _DISK_FULL)
            return False
        # Not a fault that we know: another attempt may fare better.
        log.exception("chunk_crashed")
        _end_badly(process, held, _CRASHED)
    return False


def breaks_device(error: Exception) -> bool:
    """Whether the error leaves a CUDA context that answers every further call with an error.

    By name and text, since a worker without torch asks too. Lack of memory is no such error.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return False
    return "AcceleratorError" in names or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


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


def _end_badly(process: WorkerProcess, held: HeldLease, error: DarkroomError) -> None:
    """End work that failed, as soon as the database answers.

    It may be what failed, and be back in a moment. A lease that is left to its end counts as a
    kill of a chunk that killed nobody.

    Raises:
        UnavailableError: the database was away for as long as a lease lasts.
    """
    until = monotonic_seconds() + process.settings.lease_seconds
    while True:
        try:
            _give_back_or_fail(process, held.lease, error)
        except UnavailableError:
            if monotonic_seconds() >= until:
                raise
            # No standstill: this is waited for on purpose, and not for long.
            held.move()
            held.lost.wait(_AGAIN_SECONDS)
        else:
            return


def _give_back_or_fail(process: WorkerProcess, lease: Lease, error: DarkroomError) -> None:
    """Give the chunk back for another try, or end what cannot be done.

    That is the whole job where the fault stays or no try is left; but a fault that nobody
    knows may be one item's alone, so a chunk of items is narrowed down to it.
    """
    most = process.settings.max_kills
    with process.db.tenant(lease.tenant_id) as session:
        faults = faults_so_far(session, lease)
        if faults is None:
            log.warning("lease_lost")
        elif (
            error is _CRASHED
            and lease.has_items
            and faults + 1 >= NARROW_AT
            and not _fails_throughout(session, lease, most)
        ):
            narrow_failing_chunk(session, lease, error.as_dict(), delay_seconds=_RETRY_SECONDS)
        elif error.retryable and faults + 1 < tries(process.settings, error):
            release_chunk(session, lease, delay_seconds=retry_delay(faults), failed=True)
        else:
            # With the fault itself: more than the sweeper, which only counts, could tell.
            record_failure(session, lease, error.as_dict())


def _fails_throughout(session: Session, lease: Lease, most: int) -> bool:
    """Whether items of the job fail and none succeeds: then it is no single item's fault."""
    job = get_job(session, lease.tenant_id, lease.job_id)
    return job.succeeded == 0 and job.failed >= most


def tries(settings: Settings, error: DarkroomError) -> int:
    """How often a chunk is tried that fails with this error, before its job does.

    A store that is away, or a disk that is full, the database's too, is no fault of the chunk's:
    there are as many tries as it takes to wait for it as long as the settings say.
    """
    if isinstance(error, StorageAwayError) or error.code == "storage_full":
        return settings.max_kills + math.ceil(settings.outage_seconds / _RETRY_MAX_SECONDS)
    return settings.max_kills


def retry_delay(faults: int) -> float:
    """Seconds until the next try of a chunk that failed so often before."""
    return float(min(_RETRY_SECONDS * 3 ** min(faults, 10), _RETRY_MAX_SECONDS))
