"""Which images an epoch shows, in which order, and how much each class weighs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sampler = Literal["shuffle", "balanced"]


def epoch_order(targets: Tensor, sampler: Sampler, generator: torch.Generator) -> Tensor:
    """The images of one epoch in random order, int64 [n], as many as there are targets.

    ``shuffle`` shows each image once. ``balanced`` shows each class equally often, to within
    one image: those of a small class come again and again, each as often as the others of its
    class to within once, and those of a large class are not all shown.

    Args:
        targets: int64 [n] on the CPU, indices of classes.
        sampler: how images are chosen.
        generator: of the CPU; all randomness comes from it.
    """
    if sampler == "shuffle":
        return torch.randperm(len(targets), generator=generator)
    present = targets.bincount().nonzero()[:, 0]
    shown = torch.full_like(present, len(targets) // len(present))
    # Which classes are shown once more is drawn, so that over the epochs it is no class's luck.
    shown[torch.randperm(len(present), generator=generator)[: len(targets) % len(present)]] += 1
    chosen = torch.cat(
        [
            _draw_evenly((targets == target).nonzero()[:, 0], count, generator)
            for target, count in zip(present, shown.tolist(), strict=True)
        ]
    )
    return chosen[torch.randperm(len(chosen), generator=generator)]


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """What each class weighs in the loss so that all weigh alike in sum, float32 [classes].

    Images over (classes that are there × images of the class), scikit-learn's ``balanced``; a
    class without images weighs nothing.
    """
    counts = targets.bincount(minlength=classes)
    weights = len(targets) / (int((counts > 0).sum()) * counts.to(torch.float64))
    return torch.where(counts > 0, weights, 0).to(torch.float32)


def _draw_evenly(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the indices at random, each as often as the others to within once."""
    rounds = -(-count // len(indices))
    drawn = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(rounds)]
    return torch.cat(drawn)[:count] if drawn else indices[:0]
