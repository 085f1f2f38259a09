"""Patches of an image as tokens of a Transformer's encoder.

Dosovitskiy et al., 2020, arXiv 2010.11929, with PyTorch's own encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.models.arch_options import PatchTransformerOptions
from worker.recognisers.patches import cut_patches, require_whole

_DEVIATION = 0.02


class PatchTransformer(nn.Module):
    """A linear embedding of patches, learned positions, and layers that normalise first.

    Raises:
        InvalidInputError: ``preprocess_invalid``: the patches do not cover the image.
    """

    def __init__(
        self, num_classes: int, options: PatchTransformerOptions | None = None, input_px: int = 32
    ) -> None:
        super().__init__()
        options = options or PatchTransformerOptions()
        patches = require_whole(input_px, options.patch_px, "patch_px") ** 2
        width = options.d_model
        self.patch_px = options.patch_px
        self.class_token = None
        if options.pooling == "class_token":
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
            patches += 1
        self.positions = nn.Parameter(torch.zeros(1, patches, width))
        nn.init.trunc_normal_(self.positions, std=_DEVIATION)
        self.embedding = nn.Linear(3 * options.patch_px**2, width)
        self.dropout = nn.Dropout(options.dropout)
        self.encoder = nn.TransformerEncoder(
            self._layer(options),
            options.layers,
            norm=nn.LayerNorm(width),
            # Packs sequences of different lengths; ours have one.
            enable_nested_tensor=False,
        )
        # TransformerEncoder copies one layer: each shall begin with numbers of its own.
        self.encoder.layers = nn.ModuleList(self._layer(options) for _ in range(options.layers))
        self.classifier = nn.Linear(width, num_classes)

    @staticmethod
    def _layer(options: PatchTransformerOptions) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(
            options.d_model,
            options.heads,
            options.feed_forward,
            options.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        tokens = self.embedding(cut_patches(images, self.patch_px).flatten(1, 2))
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        seen = self.encoder(self.dropout(tokens + self.positions))
        pooled = seen.mean(dim=1) if self.class_token is None else seen[:, 0]
        logits: Tensor = self.classifier(pooled)
        return logits
