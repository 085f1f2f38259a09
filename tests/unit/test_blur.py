"""How exactly a grantee is answered, and what it cannot find out."""

from __future__ import annotations

import pytest

from app.models.rights import Answers, blur

RANKED = [("disc", 0.7449), ("ring", 0.2506), ("square", 0.0041), ("star", 0.0004)]


def shown(answers: Answers, top_k: int = 4, threshold: float = 0.0) -> list[tuple[str, float]]:
    return list(blur(RANKED, answers, top_k=top_k, threshold=threshold))


def test_full_answers_are_those_of_the_pipeline() -> None:
    assert shown(Answers.FULL) == RANKED
    assert shown(Answers.FULL, top_k=3, threshold=0.005) == RANKED[:2]


def test_rounded_answers_are_hundredths_without_the_order_of_what_rounds_to_nothing() -> None:
    assert shown(Answers.ROUNDED) == [("disc", 0.74), ("ring", 0.25)]
    assert shown(Answers.ROUNDED, top_k=1) == [("disc", 0.74)]


def test_top1_is_the_best_class_in_tenths_however_many_were_wanted() -> None:
    assert shown(Answers.TOP1) == [("disc", 0.7)]


def test_best_class_is_shown_even_where_its_score_rounds_to_nothing() -> None:
    assert list(blur([("a", 0.001), ("b", 0.0009)], Answers.ROUNDED, top_k=5, threshold=0)) == [
        ("a", 0.0)
    ]


@pytest.mark.parametrize("answers", [Answers.ROUNDED, Answers.TOP1])
def test_thresholds_find_out_no_digit_that_is_not_shown(answers: Answers) -> None:
    # Either nothing, or the one rounded score: no threshold tells the two apart.
    for threshold in range(1001):
        pair = {
            tuple(blur([("a", score)], answers, top_k=1, threshold=threshold / 1000))
            for score in (0.7351, 0.7449)
        }
        assert len(pair) == 1
