"""A moving average of a network's weights, which often answers better than the last of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of a network whose parameters follow its own slowly.

    After step t the average keeps a share d = min(decay, (1 + t) / (10 + t)) of itself: it
    forgets the random beginning fast, and follows slowly later. Buffers, such as the running
    means of a batch norm, are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, steps: int) -> None:
        """Take in the weights after so many steps, the first being 1."""
        keeps = min(self._decay, (1 + steps) / (10 + steps))
        averages: list[Tensor] = [*self.module.parameters()]
        torch._foreach_lerp_(averages, [*module.parameters()], 1 - keeps)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
