"""How good answers are: accuracy, precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from app.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class: what share of its answers was right, and of its images was found."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers against the truth.

    ``precision``, ``recall`` and ``f1`` are means over the classes that were answered or
    true at least once. ``confusion[i][j]`` counts images of class i answered as class j.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    per_class: list[ClassScores]
    confusion: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def score(
    predicted: Sequence[int] | Tensor, targets: Sequence[int] | Tensor, classes: Sequence[str]
) -> Scores:
    """Compare predicted with true class indices.

    A ratio without anything to divide by (a class that was never answered) counts as 0.

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    # Imported here: loading it takes about a second, which recognition alone never needs.
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    answers = torch.as_tensor(predicted, dtype=torch.int64)
    truth = torch.as_tensor(targets, dtype=torch.int64)
    _require_comparable(answers, truth, len(classes))
    count = len(classes)
    # torchmetrics knows no task of one class; a second one that never occurs changes nothing.
    width = max(count, 2)
    confusion = multiclass_confusion_matrix(answers, truth, width)
    measures = (multiclass_precision, multiclass_recall, multiclass_f1_score)
    means = [float(measure(answers, truth, width, average="macro")) for measure in measures]
    single = [measure(answers, truth, width, average="none").tolist() for measure in measures]
    support = confusion.sum(dim=1).tolist()
    return Scores(
        accuracy=int((answers == truth).sum()) / len(truth),
        precision=means[0],
        recall=means[1],
        f1=means[2],
        per_class=[
            ClassScores(name, single[0][i], single[1][i], single[2][i], support[i])
            for i, name in enumerate(classes)
        ],
        confusion=[row[:count] for row in confusion.tolist()[:count]],
    )


def _require_comparable(answers: Tensor, truth: Tensor, classes: int) -> None:
    if answers.shape != truth.shape or answers.ndim != 1 or len(truth) == 0:
        raise InvalidInputError(
            f"{answers.numel()} answers and {truth.numel()} targets cannot be compared"
        )
    for values in (answers, truth):
        if int(values.min()) < 0 or int(values.max()) >= classes:
            raise InvalidInputError(f"an index is not one of {classes} classes")
