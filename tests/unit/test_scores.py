"""Scores are the textbook's; scikit-learn is the oracle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from app.errors import InvalidInputError
from worker.evaluation.scores import score

CLASSES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Class e never occurs and d is never answered: the cases where definitions differ.
    truth = random.integers(0, 4, 200)
    answers = np.where(random.random(200) < 0.6, truth, random.integers(0, 4, 200)) % 3
    found = score(answers.tolist(), truth.tolist(), CLASSES)
    assert found.accuracy == pytest.approx(accuracy_score(truth, answers))
    macro = precision_recall_fscore_support(truth, answers, average="macro", zero_division=0)
    assert (found.precision, found.recall, found.f1) == pytest.approx(macro[:3])
    single = precision_recall_fscore_support(
        truth, answers, labels=range(5), average=None, zero_division=0
    )
    assert [c.precision for c in found.per_class] == pytest.approx(single[0].tolist())
    assert [c.recall for c in found.per_class] == pytest.approx(single[1].tolist())
    assert [c.f1 for c in found.per_class] == pytest.approx(single[2].tolist())
    assert [c.support for c in found.per_class] == single[3].tolist()
    assert found.confusion == confusion_matrix(truth, answers, labels=range(5)).tolist()


def test_scores_become_plain_json() -> None:
    body = json.loads(json.dumps(score([0, 1, 1], [0, 1, 0], ("cat", "dog")).as_dict()))
    assert body["confusion"] == [[1, 1], [0, 1]]
    assert body["per_class"][0] == {
        "name": "cat",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
        "answered": 1,
    }


def test_single_class_is_scored() -> None:
    found = score([0, 0], [0, 0], ("only",))
    assert (found.accuracy, found.precision, found.recall, found.f1) == (1.0, 1.0, 1.0, 1.0)
    assert found.confusion == [[2]]


@pytest.mark.parametrize(("answers", "truth"), [([], []), ([0], [0, 1]), ([0], [9]), ([-1], [0])])
def test_answers_that_cannot_be_compared_are_refused(answers: list[int], truth: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        score(answers, truth, CLASSES)
