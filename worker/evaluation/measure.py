"""All that is measured of a version's answers to labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.evaluation.bootstrap import Intervals, bootstrap_intervals
from worker.evaluation.calibration import (
    OnPart,
    ReliabilityBin,
    bin_reliability,
    expected_calibration_error,
    fit_temperature,
    row_blocks,
    weigh_logits,
)
from worker.evaluation.confusion import Confusion, Floats, Ints, count_confusion
from worker.evaluation.ranks import one_vs_rest_auc, rank_targets, top_k_accuracy
from worker.evaluation.scores import Scores, score_confusion

#: Scores of some classes that are ranked at once, for the AUC: 32 MiB of float64.
_COLUMN_SCORES = 2**22


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """What is measured beside the scores: the k of top-k, resamples, images that stand out."""

    top_k: tuple[int, ...] = (1, 5)
    bootstrap_samples: int = 1000
    hardest: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Notable:
    """An image that stands out: where it stands among those measured, and its answer."""

    index: int
    target: int
    predicted: int
    confidence: float
    #: The probability of the true class; None where the complete scores are not known.
    true_probability: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure the answers are against how right; ``scaled``: at the fitted temperature."""

    ece: float
    log_loss: float
    brier: float
    bins: list[ReliabilityBin]
    temperature: float
    ece_scaled: float
    log_loss_scaled: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The answers of one version to labelled images, measured.

    What needs the complete scores of each image is None where only the answers are known.
    """

    classes: Sequence[str]
    images: int
    scores: Scores
    confusion: Confusion
    top_k: dict[int, float]
    intervals: Intervals
    #: One against all others, for each class; NaN without images on either side.
    auc: Floats | None
    calibration: Calibration | None
    #: The least probability for the true class first.
    hardest: list[Notable]
    #: The most confident wrong answers first.
    confidently_wrong: list[Notable]

    @property
    def macro_auc(self) -> float | None:
        """The mean over the classes that have an AUC."""
        if self.auc is None or np.isnan(self.auc).all():
            return None
        return float(np.nanmean(self.auc))


def measure_logits(
    logits: npt.NDArray[np.floating],
    targets: Ints,
    classes: Sequence[str],
    *,
    options: MeasureOptions,
    on_part: OnPart = lambda: None,
) -> Evaluation:
    """Measure complete answers: logits [n, classes], which may lie on disk, and targets [n].

    Some bytes for each image are in memory and a bounded part of the logits, whatever their
    number. ``on_part`` hears of each part that is about to be looked at, and may raise.

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    predicted, ranks = np.empty_like(targets), np.empty_like(targets)
    for rows in row_blocks(logits):
        on_part()
        block = np.asarray(logits[rows])
        predicted[rows] = block.argmax(axis=1)
        ranks[rows] = rank_targets(block, targets[rows])
    confusion = count_confusion(predicted, targets, len(classes))
    top_k = top_k_accuracy(ranks, [k for k in options.top_k if k <= len(classes)])
    weighed = weigh_logits(logits, targets, on_part=on_part)
    correct = predicted == targets
    temperature = fit_temperature(logits, targets, on_part)
    scaled = weigh_logits(logits, targets, temperature, on_part)
    bins = bin_reliability(weighed.confidence, correct)
    own = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0].astype(np.float64)

    def notable(index: int) -> Notable:
        return Notable(
            index,
            int(targets[index]),
            int(predicted[index]),
            float(weighed.confidence[index]),
            math.exp(-weighed.loss[index]),
        )

    return Evaluation(
        classes=classes,
        images=len(targets),
        scores=score_confusion(confusion, classes),
        confusion=confusion,
        top_k=top_k,
        intervals=_intervals(confusion, top_k, options, on_part),
        auc=_auc_by_parts(logits, weighed.loss + own, targets, on_part),
        calibration=Calibration(
            ece=expected_calibration_error(bins),
            log_loss=float(weighed.loss.mean()),
            brier=float(weighed.brier.mean()),
            bins=bins,
            temperature=temperature,
            ece_scaled=expected_calibration_error(bin_reliability(scaled.confidence, correct)),
            log_loss_scaled=float(scaled.loss.mean()),
        ),
        hardest=[notable(i) for i in _first(-weighed.loss, options.hardest)],
        confidently_wrong=[
            notable(i) for i in _first_wrong(weighed.confidence, correct, options.hardest)
        ],
    )


def measure_choices(
    predicted: Ints,
    confidence: Floats,
    targets: Ints,
    classes: Sequence[str],
    *,
    options: MeasureOptions,
    on_part: OnPart = lambda: None,
) -> Evaluation:
    """Measure answers of which only the best class [n] and its score as shown [n] are known.

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    confusion = count_confusion(predicted, targets, len(classes))
    top_k = {1: float((predicted == targets).mean())}
    return Evaluation(
        classes=classes,
        images=len(targets),
        scores=score_confusion(confusion, classes),
        confusion=confusion,
        top_k=top_k,
        intervals=_intervals(confusion, top_k, options, on_part),
        auc=None,
        calibration=None,
        hardest=[],
        confidently_wrong=[
            Notable(i, int(targets[i]), int(predicted[i]), float(confidence[i]), None)
            for i in _first_wrong(confidence, predicted == targets, options.hardest)
        ],
    )


def _intervals(
    confusion: Confusion, top_k: dict[int, float], options: MeasureOptions, on_part: OnPart
) -> Intervals:
    return bootstrap_intervals(
        confusion, top_k, samples=options.bootstrap_samples, seed=options.seed, on_part=on_part
    )


def _auc_by_parts(
    logits: npt.NDArray[np.floating], log_sums: Floats, targets: Ints, on_part: OnPart
) -> Floats:
    """The AUC of each class, some classes at a time.

    Ranked by the logarithm of the probability: probabilities far from 1 round to one number.
    """
    images, classes = logits.shape
    width = max(1, _COLUMN_SCORES // images)
    parts = []
    for first in range(0, classes, width):
        on_part()
        columns = logits[:, first : first + width] - log_sums[:, None]
        parts.append(one_vs_rest_auc(columns, targets, first))
    return np.concatenate(parts)


def _first(keys: Floats, limit: int) -> list[int]:
    """The indices of the smallest keys, in their order."""
    return [int(index) for index in np.argsort(keys, kind="stable")[:limit]]


def _first_wrong(confidence: Floats, correct: npt.NDArray[np.bool_], limit: int) -> list[int]:
    wrong = np.flatnonzero(~correct)
    return [int(index) for index in wrong[_first(-confidence[wrong], limit)]]
