"""One chunk from item references to predictions.

fetch (a thread) → decode (child processes) → batch → forward (the calling thread) overlap;
bounded queues join them and keep the order of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.errors import DarkroomError, ItemError
from app.points import reach
from worker.pipeline.decode import DecodePool
from worker.pipeline.device import DeviceWatch
from worker.pipeline.ranking import Ranked, rank_logits
from worker.pipeline.stream import DecodedItem, DecodedStream
from worker.pipeline.timing import Stopwatch
from worker.pipeline.values import (
    ChunkOutcome,
    ItemRef,
    ItemResult,
    PredictOptions,
    ProgressReport,
    StageSeconds,
    StopCheck,
    Store,
)
from worker.recognisers.load import Recogniser

#: Takes the ordinals of some images and their logits.
LogitsSink = Callable[[list[int], npt.NDArray[np.float32]], None]


class CountMismatchError(DarkroomError):
    """A chunk's results are not its items, one for one and in order."""

    code = "count_mismatch"


def run_chunk(
    items: Sequence[ItemRef],
    *,
    store: Store,
    decoder: DecodePool,
    recogniser: Recogniser,
    options: PredictOptions,
    image_batch_size: int,
    should_stop: StopCheck,
    on_progress: ProgressReport,
    on_fetched: Callable[[], None] = lambda: None,
    on_logits: LogitsSink | None = None,
) -> ChunkOutcome:
    """Recognise every item; one that fails carries its error and harms no other.

    ``should_stop`` is asked before each ImageBatch; once it says so the outcome holds the
    results so far, a prefix of the items. ``on_progress`` gets the number of items ended
    so far, ``on_fetched`` hears of every try to read from the store that ended, ``on_logits`` gets
    the ordinals and float32 logits [n, classes] of every image that was answered. The device is
    used under ``recogniser.lock``, with ImageBatches no larger than have fitted before.

    Raises:
        Exception: whatever unexpected a stage raised, after every stage has ended.
    """
    results: list[ItemResult] = []
    stopped = False
    wall, forward = Stopwatch(), DeviceWatch(recogniser.device)
    stream = DecodedStream(
        items,
        store=store,
        decoder=decoder,
        preprocess=recogniser.spec.preprocess,
        on_fetched=on_fetched,
    )
    with wall, stream:
        batch: list[DecodedItem] = []
        images = 0
        for entry in stream:
            batch.append(entry)
            images += entry.pixels is not None
            size = min(image_batch_size, recogniser.fitting_images or image_batch_size)
            if images >= size or len(batch) >= 2 * size:
                if stopped := should_stop():
                    break
                results += _recognise(batch, recogniser, options, forward, on_logits)
                batch, images = [], 0
                on_progress(len(results))
        if batch and not stopped and not (stopped := should_stop()):
            results += _recognise(batch, recogniser, options, forward, on_logits)
            on_progress(len(results))
    _require_prefix(items, results, stopped)
    seconds = StageSeconds(
        stream.fetch_seconds, stream.decode_seconds, forward.seconds, wall.seconds
    )
    return ChunkOutcome(results, stopped, seconds)


def _recognise(
    batch: list[DecodedItem],
    recogniser: Recogniser,
    options: PredictOptions,
    forward: DeviceWatch,
    on_logits: LogitsSink | None,
) -> list[ItemResult]:
    """Results of one ImageBatch and of the failed items between its images."""
    images = [entry.pixels for entry in batch if entry.pixels is not None]
    answers: Iterator[Ranked | ItemError] = iter(())
    if images:
        pixels = torch.from_numpy(np.stack(images))
        with recogniser.lock, forward:
            logits = _forward_in_parts(recogniser, pixels)
        reach("inferred")
        ranked = rank_logits(logits, recogniser.spec.classes, options)
        if on_logits is not None:
            _keep_answered(batch, logits, ranked, on_logits)
        answers = iter(ranked)
    results: list[ItemResult] = []
    for entry in batch:
        answer = entry.error if entry.pixels is None else next(answers)
        if isinstance(answer, list):
            results.append(ItemResult(entry.item.ordinal, prediction=answer))
        else:
            results.append(ItemResult(entry.item.ordinal, error=answer))
    return results


def _keep_answered(
    batch: list[DecodedItem], logits: Tensor, ranked: list[Ranked | ItemError], keep: LogitsSink
) -> None:
    ordinals = [entry.item.ordinal for entry in batch if entry.pixels is not None]
    answered = [index for index, answer in enumerate(ranked) if isinstance(answer, list)]
    if answered:
        keep(
            [ordinals[index] for index in answered],
            logits.detach().to("cpu", torch.float32)[answered].numpy(),
        )


def _forward_in_parts(recogniser: Recogniser, pixels: Tensor) -> Tensor:
    """The logits of an ImageBatch, in halves where the device has no memory for the whole."""
    fitting = recogniser.fitting_images
    if fitting is not None and len(pixels) > fitting:
        return _in_parts_of(fitting, recogniser, pixels)
    try:
        return recogniser.forward(pixels)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    # Outside the handler, where the failed pass's tensors are free again.
    half = len(pixels) // 2
    # Remembered, so that the next ImageBatch is no larger: each failed pass costs its time, and
    # an allocator that has to free everything first.
    recogniser.fitting_images = half
    return _in_parts_of(half, recogniser, pixels)


def _in_parts_of(size: int, recogniser: Recogniser, pixels: Tensor) -> Tensor:
    return torch.cat([_forward_in_parts(recogniser, part) for part in torch.split(pixels, size)])


def _require_prefix(items: Sequence[ItemRef], results: list[ItemResult], stopped: bool) -> None:
    """Count in = count out, one for one, unless stopped; then a prefix."""
    if not stopped and len(results) != len(items):
        raise CountMismatchError(f"{len(items)} items gave {len(results)} results")
    for item, result in zip(items, results, strict=False):
        if item.ordinal != result.ordinal:
            raise CountMismatchError(
                f"the result of item {result.ordinal} stands where item {item.ordinal} should"
            )
