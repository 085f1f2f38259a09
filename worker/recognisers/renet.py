"""ReNet: recurrent networks that sweep an image in four directions, instead of convolutions.

Visin et al., 2015, arXiv 1505.00393.
"""

from __future__ import annotations

from torch import Tensor, nn

from app.models.arch_options import Cell, ReNetOptions
from worker.recognisers.patches import cut_patches, require_whole
from worker.recognisers.rnn import recurrent_layer


class ReNetLayer(nn.Module):
    """Sweeps down and up each column of patches, then left and right over what came out.

    Each place then knows of the whole image, its own patch most of all.
    """

    def __init__(self, cell: Cell, before: int, patch_px: int, hidden: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.vertical = recurrent_layer(cell, before * patch_px**2, hidden, bidirectional=True)
        self.horizontal = recurrent_layer(cell, 2 * hidden, hidden, bidirectional=True)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 2·hidden, h/p, w/p] of images [n, c, h, w]."""
        patches = cut_patches(images, self.patch_px)
        n, down, across, _ = patches.shape
        columns = patches.transpose(1, 2).reshape(n * across, down, -1)
        swept = self.vertical(columns)[0].reshape(n, across, down, -1)
        rows = swept.transpose(1, 2).reshape(n * down, across, -1)
        states: Tensor = self.horizontal(rows)[0].reshape(n, down, across, -1)
        return states.permute(0, 3, 1, 2)


class ReNet(nn.Module):
    """Layers of sweeps, then linear layers on all places together.

    Raises:
        InvalidInputError: ``preprocess_invalid``: the patches do not cover the image.
    """

    def __init__(
        self, num_classes: int, options: ReNetOptions | None = None, input_px: int = 32
    ) -> None:
        super().__init__()
        options = options or ReNetOptions()
        self.layers = nn.Sequential()
        before, side = 3, input_px
        for patch_px in options.patches_px:
            side = require_whole(side, patch_px, "a patch of patches_px")
            self.layers.append(ReNetLayer(options.cell, before, patch_px, options.hidden))
            before = 2 * options.hidden
        before *= side * side
        self.classifier = nn.Sequential(nn.Flatten())
        for width in options.classifier:
            self.classifier.append(nn.Dropout(options.dropout))
            self.classifier.append(nn.Linear(before, width))
            self.classifier.append(nn.ReLU())
            before = width
        self.classifier.append(nn.Dropout(options.dropout))
        self.classifier.append(nn.Linear(before, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        logits: Tensor = self.classifier(self.layers(images))
        return logits
