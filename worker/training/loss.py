"""What a step lowers: cross-entropy with label smoothing, class weights and mixed images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from app.training.recipe import TrainingRecipe
from worker.training.augment import TrainingBatch


def batch_loss(
    logits: Tensor, batch: TrainingBatch, recipe: TrainingRecipe, class_weights: Tensor | None
) -> Tensor:
    """Mean loss of a batch, float32 []; with class weights the weighted mean.

    Of a mixed image it is the mean of the losses of what it shows, by their shares. ``logits``
    are float32 [n, classes], ``class_weights`` float32 [classes].
    """
    smoothing = recipe.label_smoothing
    if batch.mix is None or batch.other_targets is None:
        return cross_entropy(logits, batch.targets, weight=class_weights, label_smoothing=smoothing)
    first, other = (
        cross_entropy(
            logits, targets, weight=class_weights, label_smoothing=smoothing, reduction="none"
        )
        for targets in (batch.targets, batch.other_targets)
    )
    mixed = batch.mix * first + (1 - batch.mix) * other
    return mixed.sum() / batch_weight(batch.targets, class_weights)


def batch_weight(targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """What a batch counts beside others of one step: its images, or their classes' weights."""
    if class_weights is None:
        return torch.tensor(float(len(targets)), device=targets.device)
    return class_weights[targets].sum()
