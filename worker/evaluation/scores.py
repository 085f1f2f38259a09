"""How good answers are: accuracy, precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt

from worker.evaluation.confusion import (
    Confusion,
    average_ratios,
    balanced_accuracy,
    class_ratios,
    count_confusion,
)


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class: what share of its answers was right, and of its images was found."""

    name: str
    precision: float
    recall: float
    f1: float
    #: Images of the class.
    support: int
    #: Images answered as the class.
    answered: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers against the truth.

    ``precision``, ``recall`` and ``f1`` are means over the classes that were answered or true at
    least once; ``averages`` has them as ``macro`` beside ``micro`` and ``weighted``.
    ``balanced_accuracy`` is the mean recall of the classes that have images.
    """

    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    averages: dict[str, dict[str, float]]
    per_class: list[ClassScores]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ScoresWithConfusion(Scores):
    """The same with the whole matrix: ``confusion[i][j]`` counts images of i answered as j."""

    confusion: list[list[int]]


def score(
    predicted: npt.ArrayLike, targets: npt.ArrayLike, classes: Sequence[str]
) -> ScoresWithConfusion:
    """Compare predicted with true class indices, both [n].

    A ratio without anything to divide by (a class that was never answered) counts as 0.

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    confusion = count_confusion(predicted, targets, len(classes))
    found = score_confusion(confusion, classes)
    fields = {name: getattr(found, name) for name in Scores.__slots__}
    return ScoresWithConfusion(**fields, confusion=confusion.dense().tolist())


def score_confusion(confusion: Confusion, classes: Sequence[str]) -> Scores:
    """The scores of counted answers."""
    ratios = class_ratios(confusion)
    averages = {
        kind: {name: float(value) for name, value in values.items()}
        for kind, values in average_ratios(ratios).items()
    }
    return Scores(
        accuracy=int(ratios.hits.sum()) / confusion.images,
        balanced_accuracy=float(balanced_accuracy(ratios)),
        **averages["macro"],
        averages=averages,
        per_class=[
            ClassScores(name, *numbers)
            for name, *numbers in zip(
                classes,
                ratios.precision.tolist(),
                ratios.recall.tolist(),
                ratios.f1.tolist(),
                ratios.support.tolist(),
                ratios.answered.tolist(),
                strict=True,
            )
        ],
    )
