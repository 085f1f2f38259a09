"""Whether one version is better than another on the same images, or only seems so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.evaluation.confusion import class_ratios, count_confusion


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test on the images that exactly one of two versions answered rightly.

    ``exact_p`` is the two-sided binomial probability, ``statistic`` and ``p`` those of the
    chi-square approximation with continuity correction (Edwards, 1948), fit for 25 images or more.
    """

    only_first_right: int
    only_second_right: int
    exact_p: float
    statistic: float
    p: float


@dataclass(frozen=True, slots=True)
class ClassDelta:
    """One class under both versions; a delta is the second's minus the first's."""

    name: str
    support: int
    recall: tuple[float, float]
    f1: tuple[float, float]
    recall_delta: float
    f1_delta: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same images."""

    images: int
    accuracy: tuple[float, float]
    accuracy_delta: float
    both_right: int
    both_wrong: int
    mcnemar: McNemar
    per_class: list[ClassDelta]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def mcnemar(only_first_right: int, only_second_right: int) -> McNemar:
    """McNemar's test; without any image on which the versions differ both p are 1."""
    from scipy.stats import binomtest, chi2

    first, second = only_first_right, only_second_right
    differ = first + second
    if not differ:
        return McNemar(first, second, 1.0, 0.0, 1.0)
    statistic = max(abs(first - second) - 1, 0) ** 2 / differ
    exact = binomtest(first, differ, 0.5).pvalue
    return McNemar(first, second, float(exact), statistic, float(chi2.sf(statistic, 1)))


def compare_answers(
    first: npt.ArrayLike, second: npt.ArrayLike, targets: npt.ArrayLike, classes: Sequence[str]
) -> Comparison:
    """Compare the predicted class indices of two versions, [n] each, with the same truth.

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    ratios = [
        class_ratios(count_confusion(each, targets, len(classes))) for each in (first, second)
    ]
    truth = np.asarray(targets)
    right = [np.asarray(each) == truth for each in (first, second)]
    accuracy = (float(right[0].mean()), float(right[1].mean()))
    recall, f1 = ([getattr(each, name).tolist() for each in ratios] for name in ("recall", "f1"))
    return Comparison(
        images=len(truth),
        accuracy=accuracy,
        accuracy_delta=accuracy[1] - accuracy[0],
        both_right=int((right[0] & right[1]).sum()),
        both_wrong=int((~right[0] & ~right[1]).sum()),
        mcnemar=mcnemar(int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())),
        per_class=[
            ClassDelta(
                name,
                int(ratios[0].support[i]),
                (recall[0][i], recall[1][i]),
                (f1[0][i], f1[1][i]),
                recall[1][i] - recall[0][i],
                f1[1][i] - f1[0][i],
            )
            for i, name in enumerate(classes)
        ],
    )
