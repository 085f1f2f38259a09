"""Every measure of an evaluation against scikit-learn, plain arithmetic or published numbers."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from app.errors import InvalidInputError
from worker.evaluation.bootstrap import bootstrap_intervals, percentile_bounds
from worker.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    bin_reliability,
    expected_calibration_error,
    fit_temperature,
    softmax,
    weigh_logits,
)
from worker.evaluation.confusion import class_ratios, count_confusion, most_confused
from worker.evaluation.ranks import one_vs_rest_auc, rank_targets, top_k_accuracy
from worker.evaluation.scores import score

#: What the measures promise to agree to.
close = pytest.approx
_TOLERANCE = 1e-6


@st.composite
def answered_images(draw: st.DrawFn) -> tuple[Any, Any, int]:
    """Logits, targets and the number of classes: few images, absent classes, equal scores."""
    classes = draw(st.integers(1, 6))
    images = draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**32 - 1))
    present = draw(st.integers(1, classes))
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (images, classes)).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits, random.integers(0, present, images), classes


@given(answered_images())
@settings(max_examples=40, deadline=None)
def test_scores_of_any_answers_are_those_of_scikit_learn(case: tuple[Any, Any, int]) -> None:
    logits, targets, classes = case
    predicted = logits.argmax(axis=1)
    found = score(predicted, targets, [str(i) for i in range(classes)])
    assert found.accuracy == close(accuracy_score(targets, predicted), abs=_TOLERANCE)
    assert found.balanced_accuracy == close(_balanced(targets, predicted), abs=_TOLERANCE)
    for average, values in found.averages.items():
        theirs = precision_recall_fscore_support(
            targets, predicted, average=average, zero_division=0
        )
        assert list(values.values()) == close(list(theirs[:3]), abs=_TOLERANCE), average
    single = precision_recall_fscore_support(
        targets, predicted, labels=range(classes), average=None, zero_division=0
    )
    ours = [[c.precision, c.recall, c.f1, c.support] for c in found.per_class]
    assert np.array(ours) == close(np.array(single).T, abs=_TOLERANCE)
    matrix = confusion_matrix(targets, predicted, labels=range(classes))
    assert found.confusion == matrix.tolist()
    assert [c.answered for c in found.per_class] == matrix.sum(axis=0).tolist()


def _balanced(targets: Any, predicted: Any) -> float:
    """Scikit-learn's, which warns of answers that are never true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(balanced_accuracy_score(targets, predicted))


@given(answered_images())
@settings(max_examples=40, deadline=None)
def test_auc_of_any_scores_is_that_of_scikit_learn(case: tuple[Any, Any, int]) -> None:
    logits, targets, classes = case
    scores = softmax(logits)
    found = one_vs_rest_auc(scores, targets)
    parts = [one_vs_rest_auc(scores[:, [i]], targets, i)[0] for i in range(classes)]
    assert np.array_equal(found, parts, equal_nan=True)
    for index in range(classes):
        positive = targets == index
        if positive.all() or not positive.any():
            assert math.isnan(found[index])
        else:
            theirs = roc_auc_score(positive, scores[:, index])
            assert found[index] == close(theirs, abs=_TOLERANCE)


def test_auc_over_classes_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores = softmax(random.normal(0, 2, (60, 5)))
    targets = np.arange(60) % 5
    theirs = roc_auc_score(targets, scores, multi_class="ovr", average="macro")
    assert one_vs_rest_auc(scores, targets).mean() == close(theirs, abs=_TOLERANCE)


@given(answered_images(), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_top_k_accuracy_counts_the_first_k_answers(case: tuple[Any, Any, int], k: int) -> None:
    logits, targets, _ = case
    ranks = rank_targets(logits, targets)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert (np.take_along_axis(order, ranks[:, None] - 1, axis=1)[:, 0] == targets).all()
    plain = np.mean([target in row[:k] for target, row in zip(targets, order, strict=True)])
    assert top_k_accuracy(ranks, [k])[k] == close(plain, abs=_TOLERANCE)


def test_top_k_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    scores, targets = random.random((200, 9)), random.integers(0, 9, 200)
    found = top_k_accuracy(rank_targets(scores, targets), [1, 3, 5])
    for k, value in found.items():
        theirs = top_k_accuracy_score(targets, scores, k=k, labels=range(9))
        assert value == close(theirs, abs=_TOLERANCE)


@given(answered_images())
@settings(max_examples=40, deadline=None)
def test_log_loss_and_brier_score_are_those_of_scikit_learn(case: tuple[Any, Any, int]) -> None:
    logits, targets, classes = case
    found = weigh_logits(logits, targets)
    shares = softmax(logits)
    assert found.confidence == close(shares.max(axis=1), abs=_TOLERANCE)
    if classes == 1:
        assert found.loss == close(np.zeros(len(targets)))
        return
    labels = list(range(classes))
    theirs = log_loss(targets, shares, labels=labels)
    assert found.loss.mean() == close(theirs, rel=_TOLERANCE, abs=_TOLERANCE)
    one_hot = np.eye(classes)[targets]
    assert found.brier == close(((shares - one_hot) ** 2).sum(axis=1), abs=_TOLERANCE)
    if classes > 2:
        theirs = brier_score_loss(targets, shares, labels=labels, scale_by_half=False)
        assert found.brier.mean() == close(theirs, abs=_TOLERANCE)


@given(answered_images(), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_calibration_error_is_that_of_a_plain_loop(case: tuple[Any, Any, int], bins: int) -> None:
    logits, targets, _ = case
    correct = logits.argmax(axis=1) == targets
    confidence = weigh_logits(logits, targets).confidence
    found = bin_reliability(confidence, correct, bins)
    assert sum(each.images for each in found) == len(targets)
    assert expected_calibration_error(found) == close(
        _plain_ece(confidence, correct, bins), abs=_TOLERANCE
    )


def _plain_ece(confidence: Any, correct: Any, bins: int) -> float:
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return float(total)


def test_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    found = bin_reliability(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), 2)
    assert [each.images for each in found] == [2, 1]
    assert found[0].accuracy == 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fitted_temperature_is_the_one_that_the_answers_were_drawn_with(temperature: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 4, (5_000, 5))
    cumulative = softmax(logits, temperature).cumsum(axis=1)
    targets = (random.random((len(logits), 1)) > cumulative[:, :-1]).sum(axis=1)
    found = fit_temperature(logits, targets)
    assert found == close(temperature, rel=0.08)
    fitted = weigh_logits(logits, targets, found).loss.mean()
    for other in (found * 0.97, found * 1.03):
        assert fitted < weigh_logits(logits, targets, other).loss.mean()


def test_temperature_of_flawless_answers_stays_in_its_bounds() -> None:
    logits = np.eye(3)[[0, 1, 2]] * 5.0
    # The lower the better, until the loss is nothing.
    assert MIN_TEMPERATURE <= fit_temperature(logits, np.arange(3)) < 0.5
    assert fit_temperature(-logits, np.arange(3)) == close(MAX_TEMPERATURE, rel=0.01)
    assert fit_temperature(np.zeros((2, 1)), np.zeros(2, dtype=np.int64)) == 1.0


def test_intervals_are_those_of_resampled_images() -> None:
    random = np.random.default_rng(5)
    targets = random.integers(0, 3, 400)
    predicted = np.where(random.random(400) < 0.8, targets, random.integers(0, 3, 400))
    confusion = count_confusion(predicted, targets, 4)
    found = bootstrap_intervals(confusion, {1: 0.8, 2: 0.9}, samples=2000, seed=1)
    drawn = []
    for _ in range(500):
        chosen = random.integers(0, 400, 400)
        again = score(predicted[chosen], targets[chosen], ["a", "b", "c", "d"])
        drawn.append((again.accuracy, again.f1, again.balanced_accuracy))
    for index, name in enumerate(("accuracy", "f1", "balanced_accuracy")):
        plain = percentile_bounds([each[index] for each in drawn], 0.95)
        assert found.bounds[name] == close(plain, abs=0.012), name
    spread = 1.96 * math.sqrt(0.9 * 0.1 / 400)
    assert found.bounds["top_2_accuracy"] == close((0.9 - spread, 0.9 + spread), abs=0.006)


def test_same_seed_gives_the_same_intervals() -> None:
    confusion = count_confusion([0, 1, 1, 0], [0, 1, 0, 0], 2)
    first, again, other = (
        bootstrap_intervals(confusion, {}, samples=50, seed=seed).bounds for seed in (7, 7, 8)
    )
    assert first == again != other


def test_interval_of_a_single_image_is_a_point() -> None:
    found = bootstrap_intervals(count_confusion([0], [0], 3), {}, samples=10)
    assert found.bounds["accuracy"] == (1.0, 1.0)


def test_resamples_are_counted_as_single_ones_are() -> None:
    confusion = count_confusion([0, 1, 1, 2, 0], [0, 1, 0, 2, 2], 4)
    counts = np.random.default_rng(0).multinomial(5, confusion.counts / 5, size=6)
    together = class_ratios(confusion, counts)
    for row, single in zip(counts, range(6), strict=True):
        alone = class_ratios(confusion, row)
        for name in ("precision", "recall", "f1", "support", "answered", "hits"):
            assert getattr(together, name)[single] == close(getattr(alone, name))


def test_most_confused_classes_come_first() -> None:
    confusion = count_confusion([1, 1, 2, 0, 0], [0, 0, 1, 0, 2], 3)
    cells = most_confused(confusion, 2)
    assert confusion.true[cells].tolist() == [0, 1]
    assert confusion.answered[cells].tolist() == [1, 2]
    assert confusion.counts[cells].tolist() == [2, 1]


@pytest.mark.parametrize(("answers", "truth"), [([], []), ([0], [0, 1]), ([0], [9]), ([-1], [0])])
def test_indices_that_are_no_class_are_refused(answers: list[int], truth: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        count_confusion(answers, truth, 2)
