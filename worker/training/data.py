"""Labelled images for training, read by the same fetch and decode that recognition uses.

A split whose pixels fit into memory is decoded once; a larger one again in every epoch, ahead
of the training. Both give the same batches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.errors import DarkroomError, InvalidInputError
from app.models.spec import PreprocessSpec
from worker.pipeline.channel import Channel, ChannelClosedError
from worker.pipeline.decode import DecodePool
from worker.pipeline.stream import DecodedItem, DecodedStream
from worker.pipeline.values import ItemRef, ItemResult, Store

#: Batches that are decoded before the training asks for them.
_BATCHES_AHEAD = 2

#: Pixels, uint8 [n, height, width, 3], and targets, int64 [n].
Batches = Generator[tuple[Tensor, Tensor], None, None]


class TrainingStoppedError(DarkroomError):
    """Training was told to stop, so there is no network to register."""

    code = "stopped"


class TrainingImages(Protocol):
    """Images and what they show; images that failed are in ``failed`` and nowhere else."""

    @property
    def targets(self) -> Tensor:
        """int64 [n], indices of classes."""
        ...

    @property
    def failed(self) -> Sequence[ItemResult]:
        """Images that could not be read."""
        ...

    @property
    def cached_bytes(self) -> int:
        """Memory that the pixels take as long as the images are held."""
        ...

    def __len__(self) -> int: ...

    def batches(self, order: Tensor, batch_size: int, start_batch: int = 0) -> Batches:
        """The images at ``order``, so many at a time, from the batch ``start_batch`` on.

        Where CUDA is to have them they lie in pinned memory, from which a copy need not be
        waited for. Close what this returns, if not read to its end, to end what reads ahead.

        Args:
            order: int64 [m] on the CPU, indices of images; one may come again.
            batch_size: images in each batch but the last.
            start_batch: batches that are left out.

        Raises:
            DarkroomError: an image that was read before can be read no more.
        """
        ...


@dataclass(frozen=True, slots=True)
class CachedImages:
    """Images whose pixels are in memory."""

    #: uint8 [n, height, width, 3]
    pixels: Tensor
    targets: Tensor
    failed: Sequence[ItemResult]
    pin_memory: bool = False

    @property
    def cached_bytes(self) -> int:
        """Memory of the pixels."""
        return self.pixels.nbytes

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Tensor, batch_size: int, start_batch: int = 0) -> Batches:
        """See :meth:`TrainingImages.batches`."""
        for rows in torch.split(order, batch_size)[start_batch:]:
            pixels = _empty_batch(len(rows), self.pixels.shape[1:], self.pin_memory)
            yield torch.index_select(self.pixels, 0, rows, out=pixels), self.targets[rows]


@dataclass(frozen=True, slots=True)
class StreamedImages:
    """Images that are fetched and decoded each time they are shown, a few batches ahead."""

    #: One for each target.
    items: Sequence[ItemRef]
    targets: Tensor
    failed: Sequence[ItemResult]
    store: Store
    decoder: DecodePool
    preprocess: PreprocessSpec
    pin_memory: bool = False

    @property
    def cached_bytes(self) -> int:
        """None."""
        return 0

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Tensor, batch_size: int, start_batch: int = 0) -> Batches:
        """See :meth:`TrainingImages.batches`."""
        batches = torch.split(order, batch_size)[start_batch:]
        items = [self.items[index] for rows in batches for index in rows.tolist()]
        ready: Channel[tuple[Tensor, Tensor]] = Channel(_BATCHES_AHEAD)
        stream = DecodedStream(
            items, store=self.store, decoder=self.decoder, preprocess=self.preprocess
        )
        reader = threading.Thread(
            target=self._assemble,
            args=(stream, batches, ready),
            name="batches",
            daemon=True,
        )
        try:
            with stream:
                reader.start()
                try:
                    yield from ready
                finally:
                    ready.close()
        finally:
            # Leaving the stream has woken it, wherever it waited.
            reader.join()

    def _assemble(
        self,
        stream: DecodedStream,
        batches: Sequence[Tensor],
        ready: Channel[tuple[Tensor, Tensor]],
    ) -> None:
        try:
            decoded = iter(stream)
            for rows in batches:
                pixels = _empty_batch(len(rows), self.preprocess.output_shape, self.pin_memory)
                for row in pixels.numpy():
                    entry = next(decoded, None)
                    if entry is None:
                        # The training has left the stream.
                        return
                    row[:] = _pixels_of(entry)
                ready.put((pixels, self.targets[rows]))
            ready.finish()
        except ChannelClosedError:
            pass
        except BaseException as error:
            ready.fail(error)


def load_images(
    items: Sequence[ItemRef],
    targets: Sequence[int],
    *,
    store: Store,
    decoder: DecodePool,
    preprocess: PreprocessSpec,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None] = lambda _: None,
    max_cache_bytes: int,
    pin_memory: bool = False,
) -> TrainingImages:
    """Fetch and decode a whole split, in the order of ``items``.

    Its pixels stay in memory where they take at most ``max_cache_bytes``. Others are read too,
    so that images that cannot be read are known before training, and then read again for each
    epoch.

    ``should_stop`` is asked before each image is kept; ``on_progress`` hears how many images
    are over, failed ones too. ``pin_memory`` puts the batches where CUDA copies them from.

    Raises:
        TrainingStoppedError: ``should_stop`` said so.
        InvalidInputError: items and targets differ in number.
    """
    if len(items) != len(targets):
        raise InvalidInputError(f"{len(items)} items have {len(targets)} targets")
    fits = len(items) * math.prod(preprocess.output_shape) <= max_cache_bytes
    pixels = np.empty((len(items) if fits else 0, *preprocess.output_shape), np.uint8)
    kept: list[int] = []
    failed: list[ItemResult] = []
    with DecodedStream(items, store=store, decoder=decoder, preprocess=preprocess) as stream:
        for index, entry in zip(range(len(items)), stream, strict=True):
            if should_stop():
                raise TrainingStoppedError("training was told to stop")
            if entry.pixels is None:
                failed.append(ItemResult(entry.item.ordinal, error=entry.error))
            else:
                if fits:
                    pixels[len(kept)] = entry.pixels
                kept.append(index)
            on_progress(index + 1)
    kept_targets = torch.tensor([targets[index] for index in kept], dtype=torch.int64)
    if fits:
        return CachedImages(torch.from_numpy(pixels[: len(kept)]), kept_targets, failed, pin_memory)
    return StreamedImages(
        [items[index] for index in kept],
        kept_targets,
        failed,
        store,
        decoder,
        preprocess,
        pin_memory,
    )


def _pixels_of(entry: DecodedItem) -> npt.NDArray[np.uint8]:
    if entry.pixels is None:
        assert entry.error is not None
        raise entry.error
    return entry.pixels


def _empty_batch(count: int, shape: Sequence[int], pin_memory: bool) -> Tensor:
    return torch.empty((count, *shape), dtype=torch.uint8, pin_memory=pin_memory)
