"""ResNets for images of about 32 pixels: no stem that throws most of a small image away.

He et al., 2015, arXiv 1512.03385, section 4.2, and ResNet-18 of table 1 with that stem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.arch_options import ResNet18Options, ResNet32Options


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around which the input takes a short way."""

    def __init__(self, before: int, channels: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - before
        self.shortcut: nn.Module | None = None
        if project and (stride > 1 or self.more):
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, h, w], h and w divided by the stride."""
        changed = functional.relu(self.bn1(self.conv1(images)))
        changed = self.bn2(self.conv2(changed))
        return functional.relu(changed + self._short(images))

    def _short(self, images: Tensor) -> Tensor:
        if self.shortcut is not None:
            projected: Tensor = self.shortcut(images)
            return projected
        # Option A of the paper: every second pixel, the new channels zero, no parameters.
        kept = images[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, 0, self.more)) if self.more else kept


class SmallImageResNet(nn.Module):
    """A 3×3 convolution, stages of :class:`BasicBlock`, the mean over all places, one linear layer.

    Each stage after the first halves the image and doubles the channels.
    """

    def __init__(
        self, num_classes: int, blocks: Sequence[int], width: int, *, project: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential()
        before = width
        for stage, count in enumerate(blocks):
            channels = width << stage
            self.stages.append(
                nn.Sequential(
                    *(
                        BasicBlock(
                            before if block == 0 else channels,
                            channels,
                            2 if stage and block == 0 else 1,
                            project=project,
                        )
                        for block in range(count)
                    )
                )
            )
            before = channels
        self.classifier = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        seen = self.stages(self.stem(images))
        logits: Tensor = self.classifier(torch.mean(seen, dim=(2, 3)))
        return logits


def resnet_of_depth(
    depth: int, num_classes: int, options: ResNet32Options | None = None
) -> SmallImageResNet:
    """The ResNet of 6n + 2 layers in three stages: depth 20 has 0.27 million parameters."""
    width = (options or ResNet32Options()).width
    return SmallImageResNet(num_classes, [(depth - 2) // 6] * 3, width, project=False)


def resnet18(num_classes: int, options: ResNet18Options | None = None) -> SmallImageResNet:
    """ResNet-18, four stages of two blocks, with projections where the size changes."""
    width = (options or ResNet18Options()).width
    return SmallImageResNet(num_classes, [2, 2, 2, 2], width, project=True)
