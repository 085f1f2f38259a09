"""Whether a recogniser is as sure as it is right: log loss, reliability, ECE and temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.evaluation.confusion import Floats, Ints

#: Bounds of a fitted temperature: beyond them the set says nothing about it.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
#: Scores looked at together, so that no more than some tens of megabytes are in memory.
_BLOCK_SCORES = 2**21
#: Scores that a temperature is fitted on: one number needs no more.
_FIT_SCORES = 2**23

OnPart = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The images whose confidence lies in (``low``, ``high``]; means are None without any."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What the scores of each image say, [n] each."""

    #: The highest probability.
    confidence: Floats
    #: Minus the logarithm of the true class's probability.
    loss: Floats
    #: Squared distance of the probabilities from the truth.
    brier: Floats


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities [n, classes] in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return shares


def weigh_logits(
    logits: npt.NDArray[np.floating],
    targets: Ints,
    temperature: float = 1.0,
    on_part: OnPart = lambda: None,
) -> Likelihood:
    """Confidence, log loss and Brier score of each image; logits [n, classes] may lie on disk.

    ``on_part`` hears of each part that is about to be looked at.
    """
    confidence, loss, brier = (np.empty(len(targets)) for _ in range(3))
    for rows in row_blocks(logits):
        on_part()
        scaled = np.asarray(logits[rows], dtype=np.float64) / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        own = np.take_along_axis(scaled, targets[rows, None], axis=1)[:, 0]
        shares = np.exp(scaled)
        sums = shares.sum(axis=1)
        shares /= sums[:, None]
        confidence[rows] = shares.max(axis=1)
        loss[rows] = np.log(sums) - own
        of_true = np.exp(-loss[rows])
        brier[rows] = np.square(shares).sum(axis=1) - 2 * of_true + 1
    return Likelihood(confidence, loss, brier)


def bin_reliability(
    confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = 15
) -> list[ReliabilityBin]:
    """Images by their confidence in bins of equal width (Guo et al., arXiv 1706.04599)."""
    edges = np.linspace(0, 1, bins + 1)
    # The lowest bin takes 0 itself.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=confidence, minlength=bins)
    hits = np.bincount(index, weights=correct, minlength=bins)
    return [
        ReliabilityBin(
            float(edges[i]),
            float(edges[i + 1]),
            int(images[i]),
            float(sums[i] / images[i]) if images[i] else None,
            float(hits[i] / images[i]) if images[i] else None,
        )
        for i in range(bins)
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """The mean distance between confidence and accuracy, over images."""
    images = sum(each.images for each in bins)
    return sum(
        each.images / images * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    )


def fit_temperature(
    logits: npt.NDArray[np.floating], targets: Ints, on_part: OnPart = lambda: None
) -> float:
    """The temperature by which the logits [n, classes] are divided for the least log loss.

    Within :data:`MIN_TEMPERATURE` and :data:`MAX_TEMPERATURE`: where all answers are right, any
    lower one would be better still. The loss has one minimum in it, found by Brent's method. Of
    very many scores every n-th image is looked at.
    """
    from scipy.optimize import minimize_scalar

    if logits.shape[1] < 2:
        return 1.0
    step = math.ceil(logits.size / _FIT_SCORES)
    logits, targets = logits[::step], targets[::step]

    def loss(power: float) -> float:
        return float(weigh_logits(logits, targets, math.exp(power), on_part).loss.mean())

    found = minimize_scalar(
        loss,
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(float(found.x))


def row_blocks(logits: npt.NDArray[np.floating]) -> Iterator[slice]:
    """Slices of rows that cover the logits, each of a bounded number of scores."""
    rows = max(1, _BLOCK_SCORES // max(1, logits.shape[1]))
    for start in range(0, len(logits), rows):
        yield slice(start, min(start + rows, len(logits)))
