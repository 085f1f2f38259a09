"""The last step of preprocessing, on the device: bytes to normalised numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.models.spec import PreprocessSpec


class Normalise(nn.Module):
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w]: scaled to 0…1, normalised per channel.

    The same operations in the same order as torchvision's, so the numbers are the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        mean = torch.tensor(spec.mean, dtype=torch.float32).view(1, 3, 1, 1)
        std = torch.tensor(spec.std, dtype=torch.float32).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The network's input for these pixels, channels last in memory."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        return images.div_(255).sub_(self.mean).div_(self.std)
