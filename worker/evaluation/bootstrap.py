"""How sure scores are: percentile intervals over resamples of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.evaluation.confusion import (
    Confusion,
    Floats,
    Ints,
    average_ratios,
    balanced_accuracy,
    class_ratios,
)

#: Counts in memory at once: cells or classes times resamples.
_BLOCK_COUNTS = 2**22


@dataclass(frozen=True, slots=True)
class Intervals:
    """For each score the bounds between which it lies in ``level`` of the resamples."""

    level: float
    samples: int
    seed: int
    bounds: dict[str, tuple[float, float]]


def bootstrap_intervals(
    confusion: Confusion,
    top_k: dict[int, float],
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    on_part: Callable[[], None] = lambda: None,
) -> Intervals:
    """Intervals of accuracy, precision, recall, F1 (macro) and top-k accuracy by percentiles.

    Images are drawn with replacement. All that these scores see of an image is its cell of the
    confusion, so how often each cell is drawn (a multinomial) is drawn at once, instead of
    image by image. The same seed gives the same intervals. ``on_part`` hears of each part of the
    resamples that is about to be drawn.
    """
    random = np.random.default_rng(seed)
    images = confusion.images
    shares = confusion.counts / images
    drawn: dict[str, list[Floats]] = {}
    size = max(1, _BLOCK_COUNTS // max(len(shares), confusion.classes))
    for start in range(0, samples, size):
        on_part()
        counts: Ints = random.multinomial(images, shares, size=min(size, samples - start))
        for name, values in _scores_of(confusion, counts).items():
            drawn.setdefault(name, []).append(values)
    for k, share in top_k.items():
        if k > 1:
            drawn[f"top_{k}_accuracy"] = [random.binomial(images, share, samples) / images]
    return Intervals(
        level,
        samples,
        seed,
        {name: percentile_bounds(np.concatenate(parts), level) for name, parts in drawn.items()},
    )


def percentile_bounds(values: npt.ArrayLike, level: float) -> tuple[float, float]:
    """The bounds that leave the same share of the values out on either side."""
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scores_of(confusion: Confusion, counts: Ints) -> dict[str, Floats]:
    """Scores of each resample, given how often it drew each cell [resamples, cells]."""
    ratios = class_ratios(confusion, counts)
    return {
        "accuracy": ratios.hits.sum(axis=-1) / counts.sum(axis=-1),
        "balanced_accuracy": balanced_accuracy(ratios),
        **average_ratios(ratios)["macro"],
    }
