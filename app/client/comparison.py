"""Two versions on the same images: which is better, by how much, and whether that is chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from app.client.values import Result


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
    images: int
    recall: tuple[float, float]
    f1: tuple[float, float]
    recall_delta: float
    f1_delta: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the images that both answered and whose label both know."""

    images: int
    #: Images that one of them did not answer, without a label, or with one that is no class.
    left_out: int
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
    first, second = only_first_right, only_second_right
    differ = first + second
    if not differ:
        return McNemar(first, second, 1.0, 0.0, 1.0)
    statistic = max(abs(first - second) - 1, 0) ** 2 / differ
    # The chi-square distribution of one degree of freedom is that of a squared normal.
    p = math.erfc(math.sqrt(statistic / 2))
    return McNemar(first, second, _two_sided(min(first, second), differ), statistic, p)


def compare_results(
    first: Iterable[Result], second: Iterable[Result], classes: Collection[str]
) -> Comparison:
    """Compare the results of two closed jobs on the same images, in the order of their input.

    ``classes`` are those that both versions know. Images are paired by place and ``custom_id``;
    one without its pair is left out.
    """
    known = set(classes)
    support: Counter[str] = Counter()
    hits: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    answered: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    pairs: Counter[tuple[bool, bool]] = Counter()
    left_out = 0
    for one, other in _pair(first, second):
        if one is None or other is None or one.label not in known or one.label != other.label:
            left_out += 1
            continue
        best = [each.prediction[0].name if each.prediction else None for each in (one, other)]
        if None in best:
            left_out += 1
            continue
        label = str(one.label)
        support[label] += 1
        pairs[best[0] == label, best[1] == label] += 1
        for side, name in enumerate(best):
            answered[side][str(name)] += 1
            hits[side][label] += name == label
    images = support.total()
    accuracy = (_share(hits[0].total(), images), _share(hits[1].total(), images))
    return Comparison(
        images=images,
        left_out=left_out,
        accuracy=accuracy,
        accuracy_delta=accuracy[1] - accuracy[0],
        both_right=pairs[True, True],
        both_wrong=pairs[False, False],
        mcnemar=mcnemar(pairs[True, False], pairs[False, True]),
        per_class=[
            _delta(name, support[name], hits, answered)
            for name in classes
            if support[name] or answered[0][name] or answered[1][name]
        ],
    )


def _delta(
    name: str,
    images: int,
    hits: tuple[Counter[str], Counter[str]],
    answered: tuple[Counter[str], Counter[str]],
) -> ClassDelta:
    recall = (_share(hits[0][name], images), _share(hits[1][name], images))
    f1 = (
        _share(2 * hits[0][name], images + answered[0][name]),
        _share(2 * hits[1][name], images + answered[1][name]),
    )
    return ClassDelta(name, images, recall, f1, recall[1] - recall[0], f1[1] - f1[0])


def _pair(
    first: Iterable[Result], second: Iterable[Result]
) -> Iterator[tuple[Result | None, Result | None]]:
    """The results of both at each place; None where one has nothing there, or another image."""
    ours, theirs = iter(first), iter(second)
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.ordinal < other.ordinal):
            yield one, None
            one = next(ours, None)
        elif one is None or other.ordinal < one.ordinal:
            yield None, other
            other = next(theirs, None)
        else:
            yield one, other if other.custom_id == one.custom_id else None
            one, other = next(ours, None), next(theirs, None)


def _two_sided(least: int, differ: int) -> float:
    """Twice the probability of so few of ``differ`` fair coins, or fewer; 1 at most."""
    log_all = differ * math.log(2)
    tail = math.fsum(
        math.exp(
            math.lgamma(differ + 1) - math.lgamma(k + 1) - math.lgamma(differ - k + 1) - log_all
        )
        for k in range(least + 1)
    )
    return min(1.0, 2 * tail)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
