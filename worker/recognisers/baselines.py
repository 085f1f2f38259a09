"""Recognisers of the time before deep networks, to hold the others against.

They learn nothing by gradients: ``worker.training.baselines`` fits them. As tensors they are
stored, loaded and run as all others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.arch_options import DecisionTreeOptions, FeatureOptions, LinearSvmOptions

#: Values of a block of gradients that one place may not exceed (Dalal and Triggs, 2005).
_CLIP = 0.2
_EPSILON = 1e-5
_BLOCK = 2


class ImageFeatures(nn.Module):
    """Pooled pixels, or histograms of oriented gradients; has no parameters."""

    def __init__(self, options: FeatureOptions) -> None:
        super().__init__()
        self.kind, self.grid, self.orientations = (
            options.features,
            options.grid,
            options.orientations,
        )
        blocks = (options.grid - _BLOCK + 1) ** 2
        #: Numbers for an image.
        self.count = (
            3 * options.grid**2
            if options.features == "pixels"
            else blocks * _BLOCK**2 * options.orientations
        )

    def forward(self, images: Tensor) -> Tensor:
        """[n, count] of images [n, 3, h, w]."""
        if self.kind == "pixels":
            return functional.adaptive_avg_pool2d(images, self.grid).flatten(1)
        return self._hog(images)

    def _hog(self, images: Tensor) -> Tensor:
        padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        length = torch.sqrt(across.square() + down.square())
        # Of the three colours, the one with the strongest edge speaks for its pixel.
        strongest, colour = length.max(dim=1, keepdim=True)
        angle = torch.atan2(down.gather(1, colour), across.gather(1, colour))
        # An edge has no sign: directions are those of half a turn.
        place = (angle / math.pi).remainder(1.0) * self.orientations
        bins = torch.arange(self.orientations, device=images.device).view(1, -1, 1, 1)
        apart = (place - bins).remainder(self.orientations)
        apart = torch.minimum(apart, self.orientations - apart)
        votes = strongest * (1 - apart).clamp(min=0)
        cells = functional.adaptive_avg_pool2d(votes, self.grid)
        blocks = cells.unfold(2, _BLOCK, 1).unfold(3, _BLOCK, 1).permute(0, 2, 3, 1, 4, 5)
        blocks = blocks.flatten(3)
        blocks = functional.normalize(blocks, dim=3, eps=_EPSILON).clamp(max=_CLIP)
        return functional.normalize(blocks, dim=3, eps=_EPSILON).flatten(1)


class LinearSvm(nn.Module):
    """One hyperplane a class over the features; the logits are distances in margins."""

    def __init__(self, num_classes: int, options: LinearSvmOptions | None = None) -> None:
        super().__init__()
        self.features = ImageFeatures(options or LinearSvmOptions())
        self.classifier = nn.Linear(self.features.count, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class DecisionTree(nn.Module):
    """A tree of questions as tables, with room for as many leaves as the options allow.

    Node 0 is the root. A leaf is followed by itself, so that every image takes ``max_depth``
    steps. As long as nothing is fitted, the root is a leaf that knows nothing.
    """

    feature: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, num_classes: int, options: DecisionTreeOptions | None = None) -> None:
        super().__init__()
        options = options or DecisionTreeOptions()
        self.features = ImageFeatures(options)
        self.max_depth = options.max_depth
        nodes = 2 * options.max_leaves - 1
        # int64 [nodes]: the number that is asked for, and where to go next.
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("left", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("right", torch.zeros(nodes, dtype=torch.int64))
        #: float32 [nodes]: up to this much goes left.
        self.threshold = nn.Parameter(torch.zeros(nodes), requires_grad=False)
        #: float32 [nodes, classes]: what is known at a node, as logarithms of shares.
        self.scores = nn.Parameter(
            torch.zeros(nodes, num_classes).fill_(-math.log(num_classes)), requires_grad=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        known = self.features(images)
        node = torch.zeros(len(known), dtype=torch.int64, device=known.device)
        for _ in range(self.max_depth):
            value = known.gather(1, self.feature[node].unsqueeze(1)).squeeze(1)
            node = torch.where(value <= self.threshold[node], self.left[node], self.right[node])
        return self.scores[node]
