"""Where the true class stands among a recogniser's answers: top-k accuracy and one-vs-rest AUC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from worker.evaluation.confusion import Floats, Ints


def rank_targets(scores: npt.ArrayLike, targets: npt.ArrayLike) -> Ints:
    """The place of the true class among the scores [n, classes] of each image, 1 is the best.

    Equal scores rank by the order of the classes, as in the answers of a predict job.
    """
    values = np.asarray(scores)
    truth = np.asarray(targets, dtype=np.int64)
    own = np.take_along_axis(values, truth[:, None], axis=1)
    earlier = np.arange(values.shape[1]) < truth[:, None]
    ranks: Ints = 1 + (values > own).sum(axis=1) + ((values == own) & earlier).sum(axis=1)
    return ranks


def top_k_accuracy(ranks: Ints, ks: Sequence[int]) -> dict[int, float]:
    """The share of images whose true class stands among the first k answers, for each k."""
    return {k: float((ranks <= k).mean()) for k in ks}


def one_vs_rest_auc(scores: npt.ArrayLike, targets: npt.ArrayLike, first_class: int = 0) -> Floats:
    """The area under each class's ROC curve, its images against all others; NaN without either.

    ``scores`` [n, k] are those of the classes from ``first_class`` on: with many images the
    classes are given in parts. As the share of pairs in the right order, ties counted half
    (Mann-Whitney), which is what scikit-learn's ``roc_auc_score`` gives.
    """
    from scipy.stats import rankdata

    values = np.asarray(scores)
    of_class = np.arange(first_class, first_class + values.shape[1])
    positive = np.asarray(targets, dtype=np.int64)[:, None] == of_class
    positives = positive.sum(axis=0)
    negatives = len(values) - positives
    ranks = rankdata(values, axis=0)
    pairs = np.where(positive, ranks, 0.0).sum(axis=0) - positives * (positives + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = pairs / (positives * negatives.astype(np.float64))
    return area
