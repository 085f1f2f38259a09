"""Recognise the items of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile

from sqlalchemy.orm import Session

from app.errors import DarkroomError, StorageError
from app.jobs.claim import Lease, faults_so_far, release_chunk
from app.jobs.items import JobItem, unpack_items
from app.jobs.record import ItemRow, record_chunk, record_prefix, record_stopped
from app.jobs.states import ItemState
from app.log import get_logger
from worker.heartbeat import HeldLease
from worker.pipeline.run import run_chunk
from worker.pipeline.values import ItemRef, ItemResult, PredictOptions
from worker.process import WorkerProcess
from worker.tasks.door import let_go, retry_delay, tries
from worker.tasks.versions import warm_recogniser

log = get_logger(__name__)

#: So many objects at a chunk's end may fail by themselves while the store is well.
_FEW_OBJECTS = 3


def predict_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Run a chunk through the pipeline and record it, or the part that was finished."""
    lease = held.lease
    items = unpack_items(lease.items or {})
    assert lease.model_version_id is not None
    recogniser = warm_recogniser(process, lease.tenant_id, lease.model_version_id)
    fitted_before = recogniser.fitting_images
    outcome = run_chunk(
        [
            ItemRef(lease.lo + index, item.bucket, item.key, item.offset, item.length)
            for index, item in enumerate(items)
        ],
        store=process.store,
        decoder=process.decoder,
        recogniser=recogniser,
        options=PredictOptions(**lease.options),
        image_batch_size=process.settings.image_batch_size,
        should_stop=held.should_stop,
        on_progress=held.report,
        on_fetched=held.move,
    )
    if recogniser.fitting_images != fitted_before:
        log.warning(
            "image_batch_reduced",
            version=lease.model_version_id,
            device=process.device,
            images=recogniser.fitting_images,
        )
    rows = [_as_row(item, result) for item, result in zip(items, outcome.results, strict=False)]
    log.info(
        "chunk_recognised",
        items=len(rows),
        stopped=outcome.stopped,
        seconds=round(outcome.seconds.wall, 3),
        fetch_seconds=round(outcome.seconds.fetch, 3),
        decode_seconds=round(outcome.seconds.decode, 3),
        forward_seconds=round(outcome.seconds.forward, 3),
    )
    process.gauges.add_items(
        len(rows),
        fetch=outcome.seconds.fetch,
        decode=outcome.seconds.decode,
        forward=outcome.seconds.forward,
    )
    if held.lost.is_set() or (not rows and outcome.stopped):
        let_go(process, held)
        return
    unread = 0 if outcome.stopped else _unread_at_end(outcome.results)
    if unread and not _seems_away(process, len(rows) - unread, unread):
        unread = 0
    with process.db.tenant(lease.tenant_id) as session:
        error = outcome.results[-1].error if unread else None
        if error and _gives_back_unread(process, session, lease, rows[:-unread], error):
            return
        if not outcome.stopped:
            record_chunk(session, lease, rows)
        elif held.cancelled.is_set():
            record_stopped(session, lease, rows)
        else:
            record_prefix(session, lease, rows)


def _unread_at_end(results: Sequence[ItemResult]) -> int:
    """How many items at the end of a chunk the store did not give, though it was asked again."""
    read = dropwhile(lambda result: isinstance(result.error, StorageError), reversed(results))
    return len(results) - sum(1 for _ in read)


def _seems_away(process: WorkerProcess, read: int, unread: int) -> bool:
    """Whether it is the store that fails, rather than a few objects of it."""
    if not read or unread > _FEW_OBJECTS:
        return True
    try:
        process.store.bucket_exists(process.settings.bucket)
    except StorageError:
        return True
    return False


def _gives_back_unread(
    process: WorkerProcess,
    session: Session,
    lease: Lease,
    read: Sequence[ItemRow],
    error: DarkroomError,
) -> bool:
    """Record what was read and give the rest back for later.

    ``error`` is the last item's. False where the tries are used up, and the items' errors are
    to be recorded: then it is these objects that fail.
    """
    faults = faults_so_far(session, lease)
    if faults is None:
        # Lost: let the recording find that out.
        return False
    # Recorded items start the count anew.
    faults = 0 if read else faults
    if faults + 1 >= tries(process.settings, error):
        return False
    log.warning("store_away", items=lease.hi - lease.lo - len(read), faults=faults + 1)
    delay_seconds = retry_delay(faults)
    if read:
        record_prefix(session, lease, read, delay_seconds=delay_seconds, faults=1)
    else:
        release_chunk(session, lease, delay_seconds=delay_seconds, failed=True)
    return True


def _as_row(item: JobItem, result: ItemResult) -> ItemRow:
    prediction = result.prediction
    return ItemRow(
        ordinal=result.ordinal,
        custom_id=item.custom_id,
        source=item.source,
        state=ItemState.SUCCEEDED if result.error is None else ItemState.FAILED,
        prediction=None if prediction is None else [list(pair) for pair in prediction],
        error=None if result.error is None else result.error.as_dict(),
        label=item.label,
        metadata=item.metadata,
    )
