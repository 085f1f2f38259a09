"""Recognise the items of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from app.errors import StorageAwayError, StorageError
from app.jobs.claim import Lease, faults_so_far, release_chunk
from app.jobs.item_rows import ItemRow
from app.jobs.items import JobItem, unpack_items
from app.jobs.record import record_chunk, record_prefix, record_stopped
from app.jobs.speeds import ChunkSpeed
from app.jobs.states import ItemState, JobKind
from app.log import get_logger
from app.models.rights import Answers, blur
from app.models.shared import SharedVersion, require_answers
from worker.heartbeat import HeldLease
from worker.pipeline.run import run_chunk
from worker.pipeline.values import ChunkOutcome, ItemRef, ItemResult, PredictOptions
from worker.process import WorkerProcess
from worker.tasks.allowed import put_between, refuse_items
from worker.tasks.door import let_go, retry_delay, tries
from worker.tasks.scores import ScoreKeeper
from worker.tasks.versions import warm_recogniser

log = get_logger(__name__)

#: So many objects of a chunk may fail by themselves while the store is well.
_FEW_OBJECTS = 3


def predict_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Run a chunk through the pipeline and record it, or the part that was finished."""
    lease = held.lease
    items = unpack_items(lease.items or {})
    assert lease.model_version_id is not None
    options = _options_of(lease)
    shared = _granted_now(process, lease)
    refused = refuse_items(process, lease, items)
    keeper = keeper_of(lease, shared)
    recogniser = warm_recogniser(process, lease.tenant_id, lease.model_version_id, shared)
    fitted_before = recogniser.fitting_images
    with process.time.share() as busy:
        outcome = run_chunk(
            [
                ItemRef(lease.lo + index, item.bucket, item.key, item.offset, item.length)
                for index, item in enumerate(items)
                if index not in refused
            ],
            store=process.store,
            decoder=process.decoder,
            recogniser=recogniser,
            # What is shown is chosen from the exact scores, all of them.
            options=options if shared is None else replace(options, threshold=0.0),
            image_batch_size=process.settings.image_batch_size,
            should_stop=held.should_stop,
            on_progress=held.report,
            on_fetched=held.move,
            on_logits=None if keeper is None else keeper.add,
        )
    if recogniser.fitting_images != fitted_before:
        log.warning(
            "image_batch_reduced",
            version=lease.model_version_id,
            device=process.device,
            images=recogniser.fitting_images,
        )
    answers = put_between(lease, len(items), refused, outcome.results)
    results = (
        answers if shared is None else [_blurred(result, shared, options) for result in answers]
    )
    rows = [_as_row(item, result) for item, result in zip(items, results, strict=False)]
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
    away = _first_unanswered(results)
    if outcome.stopped:
        # Whoever takes the rest asks for them again.
        rows = rows[:away]
    if held.lost.is_set() or (not rows and outcome.stopped):
        let_go(process, held)
        return
    if keeper is not None and rows:
        keeper.store(process, lease)
    most = _tries_to_read(process, results) if away is not None else 0
    with process.db.tenant(lease.tenant_id) as session:
        if outcome.stopped:
            record = record_stopped if held.cancelled.is_set() else record_prefix
            record(session, lease, rows)
        elif away is None or not _gives_back_unread(session, lease, rows[:away], most):
            record_chunk(session, lease, rows, speed=_speed(process, lease, outcome, busy.seconds))


def _speed(
    process: WorkerProcess, lease: Lease, outcome: ChunkOutcome, busy_seconds: float
) -> ChunkSpeed | None:
    """How fast the chunk's images were answered; another tenant's version keeps no speed."""
    images = sum(result.error is None for result in outcome.results)
    if lease.is_shared or not images:
        return None
    return ChunkSpeed(process.device_name, images, outcome.seconds.forward, busy_seconds)


def _options_of(lease: Lease) -> PredictOptions:
    """An evaluation says how many classes it shows, and needs the best one of every image."""
    if lease.kind is JobKind.EVALUATE:
        return PredictOptions(top_k=lease.options["top_k"])
    return PredictOptions(**lease.options)


def keeper_of(lease: Lease, shared: SharedVersion | None) -> ScoreKeeper | None:
    """Who keeps the complete scores for a report; nobody where they are not for this tenant."""
    if lease.kind is not JobKind.EVALUATE:
        return None
    if shared is not None and shared.blurs() is not Answers.FULL:
        return None
    return ScoreKeeper()


def _granted_now(process: WorkerProcess, lease: Lease) -> SharedVersion | None:
    """The version that the chunk runs where it is another tenant's; None where it is an own one.

    Asked for each chunk, so that a right that was taken back ends with the chunks under way.

    Raises:
        ForbiddenError: ``model_grant_revoked``.
    """
    if not lease.is_shared:
        return None
    with process.db.tenant(lease.tenant_id) as session:
        return require_answers(
            session, str(lease.model_version_id), labelled=lease.dataset_version_id is not None
        )


def _blurred(result: ItemResult, shared: SharedVersion, options: PredictOptions) -> ItemResult:
    """The result as exactly as the model's owner lets this tenant see it."""
    if result.prediction is None:
        return result
    shown = blur(
        result.prediction, shared.blurs(), top_k=options.top_k, threshold=options.threshold
    )
    return replace(result, prediction=list(shown))


def _first_unanswered(results: Sequence[ItemResult]) -> int | None:
    """Where the first item stands that the store did not answer for, though asked again."""
    return next(
        (
            index
            for index, result in enumerate(results)
            if isinstance(result.error, StorageAwayError)
        ),
        None,
    )


def _tries_to_read(process: WorkerProcess, results: Sequence[ItemResult]) -> int:
    """How often a chunk is tried that holds items which the store did not answer for.

    Few of them, in a store that answers, may be objects that fail by themselves.
    """
    errors = [result.error for result in results if isinstance(result.error, StorageAwayError)]
    if len(errors) <= _FEW_OBJECTS:
        try:
            process.store.bucket_exists(process.settings.bucket)
        except StorageError:
            pass
        else:
            return process.settings.max_kills
    return tries(process.settings, errors[0])


def _gives_back_unread(
    session: Session, lease: Lease, read: Sequence[ItemRow], most_tries: int
) -> bool:
    """Record what was read before the first unanswered item and give the rest back for later.

    False where the tries are used up, and the items' errors are to be recorded.
    """
    faults = faults_so_far(session, lease)
    if faults is None:
        # Lost: let the recording find that out.
        return False
    # Recorded items start the count anew.
    faults = 0 if read else faults
    if faults + 1 >= most_tries:
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
