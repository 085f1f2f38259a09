"""An image read as a sequence, row after row or patch after patch, by a recurrent network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.models.arch_options import Cell, RowRnnOptions
from worker.recognisers.patches import cut_patches, require_whole


def recurrent_layer(cell: Cell, inputs: int, hidden: int, *, bidirectional: bool) -> nn.RNNBase:
    """One layer of LSTM or GRU on [n, steps, inputs]."""
    if cell == "gru":
        return nn.GRU(inputs, hidden, batch_first=True, bidirectional=bidirectional)
    layer = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("bias_ih"):
                # A forget gate that is open from the start (Jozefowicz et al., 2015).
                parameter[hidden : 2 * hidden].fill_(1.0)
    return layer


class AttentionPool(nn.Module):
    """The mean of a sequence's states, weighted by what each of them says of itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[n, width] of states [n, steps, width]."""
        weights = self.score(torch.tanh(self.project(states))).softmax(dim=1)
        pooled: Tensor = (weights * states).sum(dim=1)
        return pooled


class RowRnn(nn.Module):
    """LSTM or GRU layers over the rows, columns or patches of an image.

    Raises:
        InvalidInputError: ``preprocess_invalid``: the image is no whole number of steps.
    """

    def __init__(
        self, num_classes: int, options: RowRnnOptions | None = None, input_px: int = 32
    ) -> None:
        super().__init__()
        options = options or RowRnnOptions()
        require_whole(input_px, options.step_px, "step_px")
        self.sequence, self.step_px = options.sequence, options.step_px
        self.hidden, self.pooling = options.hidden, options.pooling
        across = options.step_px if options.sequence == "patches" else input_px
        width, before = options.hidden * (2 if options.bidirectional else 1), 3 * across
        before *= options.step_px
        self.layers = nn.ModuleList()
        for _ in range(options.layers):
            self.layers.append(
                recurrent_layer(
                    options.cell, before, options.hidden, bidirectional=options.bidirectional
                )
            )
            before = width
        self.dropout = nn.Dropout(options.dropout)
        self.attention = AttentionPool(width) if options.pooling == "attention" else None
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        states = self._steps(images)
        for layer in self.layers:
            states = self.dropout(layer(states)[0])
        logits: Tensor = self.classifier(self._pool(states))
        return logits

    def _steps(self, images: Tensor) -> Tensor:
        """The image as it is read, [n, steps, numbers]."""
        if self.sequence == "patches":
            return cut_patches(images, self.step_px).flatten(1, 2)
        if self.sequence == "columns":
            images = images.transpose(2, 3)
        n, channels, height, width = images.shape
        rows = images.transpose(1, 2).reshape(n, height // self.step_px, -1)
        assert rows.shape[2] == channels * width * self.step_px
        return rows

    def _pool(self, states: Tensor) -> Tensor:
        if self.attention is not None:
            pooled: Tensor = self.attention(states)
            return pooled
        if self.pooling == "mean":
            return states.mean(dim=1)
        # The direction that reads backwards ends at the first step.
        return torch.cat([states[:, -1, : self.hidden], states[:, 0, self.hidden :]], dim=1)
