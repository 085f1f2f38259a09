"""Answers of a network to a whole split, without learning from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from worker.training.data import TrainingImages

_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss, accuracy and the predicted class index of each image, int64 [n]."""

    loss: float
    accuracy: float
    predicted: Tensor


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    normalise: nn.Module,
    images: TrainingImages,
    *,
    device: str,
    on_answered: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answer every image once, in order, in float32 as in serving; plain cross-entropy.

    ``on_answered`` hears after each batch how many images it held.
    """
    module.eval()
    total_loss = torch.zeros((), device=device)
    predicted: list[Tensor] = []
    with closing(images.batches(torch.arange(len(images)), _EVALUATION_BATCH)) as batches:
        for pixels, targets in batches:
            logits = module(normalise(pixels.to(device, non_blocking=True)))
            total_loss += cross_entropy(logits, targets.to(device), reduction="sum")
            predicted.append(logits.argmax(dim=1).cpu())
            on_answered(len(targets))
    answers = torch.cat(predicted)
    correct = int((answers == images.targets).sum())
    return Evaluation(float(total_loss) / len(images), correct / len(images), answers)
