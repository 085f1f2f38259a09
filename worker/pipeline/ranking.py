"""From the network's numbers to a ranked (class, score) list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.errors import ItemError
from worker.pipeline.values import PredictOptions

Ranked = list[tuple[str, float]]


def rank_logits(
    logits: Tensor, classes: Sequence[str], options: PredictOptions
) -> list[Ranked | ItemError]:
    """Turn float32 logits [n, classes] into one ranked list a row, best first.

    Scores are softmax or sigmoid in float32. Equal scores rank by the logits behind them,
    equal logits by the order of the classes, so the same numbers always rank alike. A row
    with NaN or an infinity is an ItemError ``not_finite``.
    """
    logits = logits.detach().to("cpu", torch.float32)
    finite = logits.isfinite().all(dim=1).tolist()
    scores = logits.softmax(dim=1) if options.activation == "softmax" else logits.sigmoid()
    # Ranked by logits, not scores: scores far from the best round to the same number.
    order = logits.argsort(dim=1, descending=True, stable=True)[:, : options.top_k]
    best = scores.gather(1, order).tolist()
    ranked: list[Ranked | ItemError] = []
    for is_finite, row_scores, row_order in zip(finite, best, order.tolist(), strict=True):
        if not is_finite:
            ranked.append(ItemError("the model's answer is not a finite number", code="not_finite"))
            continue
        ranked.append(
            [
                (classes[index], score)
                for index, score in zip(row_order, row_scores, strict=True)
                if score >= options.threshold
            ]
        )
    return ranked
