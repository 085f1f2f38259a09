"""Labelled images as tensors, read by the same fetch and decode that recognition uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.errors import DarkroomError, InvalidInputError, TooLargeError
from app.models.spec import PreprocessSpec
from worker.pipeline.decode import DecodePool
from worker.pipeline.stream import DecodedStream
from worker.pipeline.values import ItemRef, ItemResult, Store

#: Most bytes of pixels that one split may hold in memory.
MAX_IMAGE_SET_BYTES = 4 * 1024**3


class TrainingStoppedError(DarkroomError):
    """Training was told to stop, so there is no network to register."""

    code = "stopped"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images and what they show; images that failed are in ``failed`` and nowhere else."""

    #: uint8 [n, height, width, 3]
    pixels: Tensor
    #: int64 [n], indices of classes
    targets: Tensor
    failed: list[ItemResult]

    def __len__(self) -> int:
        return len(self.targets)


def load_images(
    items: Sequence[ItemRef],
    targets: Sequence[int],
    *,
    store: Store,
    decoder: DecodePool,
    preprocess: PreprocessSpec,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None] = lambda _: None,
    max_set_bytes: int = MAX_IMAGE_SET_BYTES,
) -> ImageSet:
    """Fetch and decode a whole split, in the order of ``items``.

    ``should_stop`` is asked before each image is kept; ``on_progress`` hears how many images
    are over, failed ones too.

    Raises:
        TrainingStoppedError: ``should_stop`` said so.
        TooLargeError: the pixels would take more than ``max_set_bytes`` of memory.
        InvalidInputError: items and targets differ in number.
    """
    if len(items) != len(targets):
        raise InvalidInputError(f"{len(items)} items have {len(targets)} targets")
    needed = len(items) * math.prod(preprocess.output_shape)
    if needed > max_set_bytes:
        raise TooLargeError(
            f"{len(items)} images of {preprocess.crop_px}×{preprocess.crop_px} pixels take "
            f"{needed} bytes of memory; the limit is {max_set_bytes}. Use fewer or smaller images."
        )
    pixels = np.empty((len(items), *preprocess.output_shape), np.uint8)
    kept: list[int] = []
    failed: list[ItemResult] = []
    with DecodedStream(items, store=store, decoder=decoder, preprocess=preprocess) as stream:
        for over, (target, entry) in enumerate(zip(targets, stream, strict=True), 1):
            if should_stop():
                raise TrainingStoppedError("training was told to stop")
            if entry.pixels is None:
                failed.append(ItemResult(entry.item.ordinal, error=entry.error))
            else:
                pixels[len(kept)] = entry.pixels
                kept.append(target)
            on_progress(over)
    return ImageSet(
        torch.from_numpy(pixels[: len(kept)]), torch.tensor(kept, dtype=torch.int64), failed
    )
