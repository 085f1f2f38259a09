"""Which classes were taken for which: counts from which precision, recall and F1 follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.errors import InvalidInputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Confusion:
    """The cells that are not empty: ``counts[k]`` images of ``true[k]`` answered ``answered[k]``.

    No more cells than images, however many ``classes`` there are.
    """

    classes: int
    true: Ints
    answered: Ints
    counts: Ints

    @property
    def images(self) -> int:
        """Images compared."""
        return int(self.counts.sum())

    @property
    def is_hit(self) -> npt.NDArray[np.bool_]:
        """Whether a cell lies on the diagonal."""
        hit: npt.NDArray[np.bool_] = self.true == self.answered
        return hit

    def dense(self) -> Ints:
        """The whole matrix [classes, classes]: rows are true, columns answered."""
        matrix = np.zeros((self.classes, self.classes), dtype=np.int64)
        matrix[self.true, self.answered] = self.counts
        return matrix


def count_confusion(predicted: npt.ArrayLike, targets: npt.ArrayLike, classes: int) -> Confusion:
    """Count the pairs of true and predicted class indices, both [n].

    Raises:
        InvalidInputError: nothing to compare, unequal lengths, or an index that is no class.
    """
    answers = np.asarray(predicted, dtype=np.int64)
    truth = np.asarray(targets, dtype=np.int64)
    if answers.shape != truth.shape or answers.ndim != 1 or len(truth) == 0:
        raise InvalidInputError(
            f"{answers.size} answers and {truth.size} targets cannot be compared"
        )
    for values in (answers, truth):
        if values.min() < 0 or values.max() >= classes:
            raise InvalidInputError(f"an index is not one of {classes} classes")
    cells, counts = np.unique(truth * classes + answers, return_counts=True)
    return Confusion(classes, cells // classes, cells % classes, counts.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Ratios:
    """Precision, recall and F1 of each class, [..., classes]; see :func:`class_ratios`."""

    precision: Floats
    recall: Floats
    f1: Floats
    #: Images of the class.
    support: Ints
    #: Images answered as the class.
    answered: Ints
    hits: Ints


def class_ratios(confusion: Confusion, counts: Ints | None = None) -> Ratios:
    """Precision, recall and F1 of each class.

    A ratio without anything to divide by (a class that was never answered) counts as 0, as
    scikit-learn's ``zero_division=0``. ``counts`` [..., cells] stand in for those of the cells,
    so that many resamples are computed at once.
    """
    cells = confusion.counts if counts is None else counts
    support = _sum_by(confusion.true, cells, confusion.classes)
    answered = _sum_by(confusion.answered, cells, confusion.classes)
    hits = _sum_by(confusion.true, cells * confusion.is_hit, confusion.classes)
    return Ratios(
        precision=_divide(hits, answered),
        recall=_divide(hits, support),
        f1=_divide(2 * hits, support + answered),
        support=support,
        answered=answered,
        hits=hits,
    )


def average_ratios(ratios: Ratios) -> dict[str, dict[str, Floats]]:
    """Precision, recall and F1 over all classes, [...] each: ``macro``, ``micro``, ``weighted``.

    Macro is the mean over the classes that were answered or true at least once, weighted the mean
    by support, micro counts all images alike (and is the accuracy, since each has one answer).
    """
    seen = (ratios.support + ratios.answered) > 0
    images = ratios.support.sum(axis=-1)
    micro = _divide(ratios.hits.sum(axis=-1), images)
    single = {"precision": ratios.precision, "recall": ratios.recall, "f1": ratios.f1}
    return {
        "macro": {
            name: _divide((values * seen).sum(axis=-1), seen.sum(axis=-1))
            for name, values in single.items()
        },
        "micro": dict.fromkeys(single, micro),
        "weighted": {
            name: _divide((values * ratios.support).sum(axis=-1), images)
            for name, values in single.items()
        },
    }


def balanced_accuracy(ratios: Ratios) -> Floats:
    """The mean recall of the classes that have images, [...]."""
    present = ratios.support > 0
    return _divide((ratios.recall * present).sum(axis=-1), present.sum(axis=-1))


def most_confused(confusion: Confusion, limit: int) -> Ints:
    """The cells of wrong answers with the most images, [limit] or fewer, the largest first."""
    wrong = np.flatnonzero(~confusion.is_hit)
    return wrong[np.argsort(-confusion.counts[wrong], kind="stable")][:limit]


def _sum_by(index: Ints, values: Ints, size: int) -> Ints:
    """The sums of ``values`` [..., cells] over the cells of each index, [..., size]."""
    if values.ndim == 1:
        sums = np.bincount(index, weights=values, minlength=size)
        return np.rint(sums).astype(np.int64)
    sums = np.zeros((*values.shape[:-1], size), dtype=np.int64)
    # Sorted runs are summed at once; adding cell by cell takes ten times as long.
    order = np.argsort(index, kind="stable")
    found, starts = np.unique(index[order], return_index=True)
    sums[..., found] = np.add.reduceat(values[..., order], starts, axis=-1)
    return sums


def _divide(top: npt.ArrayLike, bottom: npt.ArrayLike) -> Floats:
    """Quotients; 0 where there is nothing to divide by."""
    above, below = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    out = np.zeros(np.broadcast_shapes(above.shape, below.shape))
    return np.divide(above, below, out=out, where=below != 0)
