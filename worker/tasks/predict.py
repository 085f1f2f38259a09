"""Recognise the items of a chunk."""

from __future__ import annotations

from app.jobs.items import JobItem, unpack_items
from app.jobs.record import ItemRow, record_chunk, record_prefix, record_stopped
from app.jobs.states import ItemState
from app.log import get_logger
from worker.heartbeat import HeldLease
from worker.pipeline.run import run_chunk
from worker.pipeline.values import ItemRef, ItemResult, PredictOptions
from worker.process import WorkerProcess
from worker.tasks.door import let_go
from worker.tasks.versions import warm_recogniser

log = get_logger(__name__)


def predict_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Run a chunk through the pipeline and record it, or the part that was finished."""
    lease = held.lease
    items = unpack_items(lease.items or {})
    assert lease.model_version_id is not None
    recogniser = warm_recogniser(process, lease.tenant_id, lease.model_version_id)
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
    if held.lost.is_set() or (not rows and outcome.stopped):
        let_go(process, held)
        return
    with process.db.tenant(lease.tenant_id) as session:
        if not outcome.stopped:
            record_chunk(session, lease, rows)
        elif held.cancelled.is_set():
            record_stopped(session, lease, rows)
        else:
            record_prefix(session, lease, rows)


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
