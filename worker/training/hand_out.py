"""How the images of a training, and where it stands, get from rank 0 to the others."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from worker.pipeline.values import ItemResult
from worker.training.checkpoint import restore_checkpoint, save_checkpoint
from worker.training.data import Batches, TrainingImages
from worker.training.ranks import Ranks, SeveralRanks, share_sizes
from worker.training.state import TrainingState


def hand_out_images(images: TrainingImages, ranks: Ranks) -> TrainingImages:
    """The images of rank 0, of whose batches each rank gets a share."""
    if not isinstance(ranks, SeveralRanks):
        return images
    ranks.share(torch.tensor([len(images)]))
    ranks.share(images.targets)
    return _HandedOut(images, ranks)


def receive_images(ranks: SeveralRanks) -> TrainingImages:
    """The images of which a rank gets its shares from rank 0."""
    count = torch.zeros(1, dtype=torch.int64)
    ranks.share(count)
    targets = torch.empty(int(count), dtype=torch.int64)
    ranks.share(targets)
    return _Received(targets, ranks)


def share_state(state: TrainingState, ranks: Ranks) -> None:
    """Let all ranks stand where rank 0 does, before the first step or after a checkpoint."""
    if not isinstance(ranks, SeveralRanks):
        return
    state.run = ranks.share_bytes(state.run.encode()).decode()
    if not ranks.agree(state.steps > 0):
        for tensor in state.module.state_dict().values():
            ranks.share(tensor)
        if state.ema is not None:
            state.ema.module.load_state_dict(state.module.state_dict())
        return
    with _memory_file() as path:
        if ranks.rank == 0:
            save_checkpoint(state, path)
            ranks.share_bytes(path.read_bytes())
        else:
            path.write_bytes(ranks.share_bytes())
            restore_checkpoint(state, path)


@dataclass(frozen=True, slots=True)
class _HandedOut:
    """Of rank 0: its own share of each batch, once the others have theirs."""

    images: TrainingImages
    ranks: SeveralRanks

    @property
    def targets(self) -> Tensor:
        return self.images.targets

    @property
    def failed(self) -> Sequence[ItemResult]:
        return self.images.failed

    @property
    def cached_bytes(self) -> int:
        return self.images.cached_bytes

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Tensor, batch_size: int, start_batch: int = 0) -> Batches:
        device = self.ranks.device
        with closing(self.images.batches(order, batch_size, start_batch)) as batches:
            for pixels, targets in batches:
                self.ranks.share(torch.tensor(pixels.shape))
                sizes = share_sizes(len(targets), self.ranks.size)
                # By way of rank 0's device: from there to the others it is not far.
                shares = zip(
                    torch.split(pixels.to(device, non_blocking=True), sizes),
                    torch.split(targets.to(device, non_blocking=True), sizes),
                    strict=True,
                )
                own, *others = shares
                for rank, share in enumerate(others, start=1):
                    for tensor in share if sizes[rank] else ():
                        distributed.send(tensor, rank)
                yield own


@dataclass(frozen=True, slots=True)
class _Received:
    """Of the other ranks: their shares, which may be empty."""

    targets: Tensor
    ranks: SeveralRanks
    failed: Sequence[ItemResult] = ()
    cached_bytes: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Tensor, batch_size: int, start_batch: int = 0) -> Batches:
        device = self.ranks.device
        for _ in range(start_batch, math.ceil(len(order) / batch_size)):
            shape = torch.zeros(4, dtype=torch.int64)
            self.ranks.share(shape)
            images, *image_shape = shape.tolist()
            count = share_sizes(images, self.ranks.size)[self.ranks.rank]
            pixels = torch.empty((count, *image_shape), dtype=torch.uint8, device=device)
            targets = torch.empty(count, dtype=torch.int64, device=device)
            if count:
                distributed.recv(pixels, 0)
                distributed.recv(targets, 0)
            yield pixels, targets


@contextmanager
def _memory_file() -> Iterator[Path]:
    """A file in memory: a checkpoint may lie in clear nowhere else."""
    handle = os.memfd_create("checkpoint")
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
