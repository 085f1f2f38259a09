"""Scores become a ranked list that depends on the numbers alone."""

from __future__ import annotations

import pytest
import torch

from app.errors import ItemError
from worker.pipeline.ranking import rank_logits
from worker.pipeline.values import PredictOptions

CLASSES = ("a", "b", "c", "d")


def test_softmax_scores_sum_to_one_and_rank_best_first() -> None:
    (ranked,) = rank_logits(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), CLASSES, PredictOptions())
    assert isinstance(ranked, list)
    assert [name for name, _ in ranked] == ["b", "c", "a", "d"]
    assert sum(score for _, score in ranked) == pytest.approx(1)


def test_sigmoid_scores_stand_for_themselves() -> None:
    options = PredictOptions(activation="sigmoid")
    (ranked,) = rank_logits(torch.tensor([[0.0, 100.0, 100.0, -100.0]]), CLASSES, options)
    assert ranked == [("b", 1.0), ("c", 1.0), ("a", 0.5), ("d", pytest.approx(0))]


def test_top_k_and_threshold_shorten_the_list() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    assert len(rank_logits(logits, CLASSES, PredictOptions(top_k=2))[0]) == 2  # type: ignore[arg-type]
    assert len(rank_logits(logits, CLASSES, PredictOptions(top_k=99))[0]) == 4  # type: ignore[arg-type]
    (kept,) = rank_logits(logits, CLASSES, PredictOptions(threshold=0.5))
    assert [name for name, _ in kept] == ["b"]  # type: ignore[union-attr]
    assert rank_logits(logits, CLASSES, PredictOptions(threshold=0.99)) == [[]]


def test_equal_scores_rank_in_the_order_of_the_classes() -> None:
    (ranked,) = rank_logits(torch.zeros(1, 4), CLASSES, PredictOptions())
    assert ranked == [(name, 0.25) for name in CLASSES]


def test_scores_that_round_alike_rank_by_their_logits() -> None:
    (ranked,) = rank_logits(
        torch.tensor([[-500.0, 0.0, -300.0, -400.0]]), CLASSES, PredictOptions()
    )
    assert isinstance(ranked, list)
    assert [name for name, _ in ranked] == ["b", "c", "d", "a"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_row_that_is_not_finite_is_an_error(bad: float) -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, bad, 0.0, 0.0]])
    good, spoilt = rank_logits(logits, CLASSES, PredictOptions(top_k=1))
    assert isinstance(good, list)
    assert isinstance(spoilt, ItemError)
    assert spoilt.code == "not_finite"
