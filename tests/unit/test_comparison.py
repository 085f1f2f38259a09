"""Two versions held against each other, by scipy's numbers and through the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binomtest, chi2
from sklearn.metrics import accuracy_score, f1_score, recall_score

from app.cli.exits import Exit
from app.client.comparison import compare_results, mcnemar
from app.client.values import Result
from tests.unit.fake_service import FakeService, answer, job, page

NAMES = ("cat", "dog", "gnu")


@pytest.mark.parametrize(
    ("first", "second", "exact", "statistic", "p"),
    [
        # Drug and disease, the first example of the test in Wikipedia.
        (121, 59, 4.4e-06, 20.672222, 5.4501e-06),
        # 2 · (C(10,0) + C(10,1)) / 2^10, by hand.
        (9, 1, 0.021484375, 4.9, 0.026857),
        (5, 5, 1.0, 0.0, 1.0),
        (0, 0, 1.0, 0.0, 1.0),
        (1, 0, 1.0, 0.0, 1.0),
    ],
)
def test_mcnemar_gives_known_values(
    first: int, second: int, exact: float, statistic: float, p: float
) -> None:
    found = mcnemar(first, second)
    assert found.exact_p == pytest.approx(exact, rel=0.02)
    assert found.statistic == pytest.approx(statistic, rel=1e-5)
    assert found.p == pytest.approx(p, rel=1e-4)


@given(st.integers(0, 3000), st.integers(0, 3000))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_scipys_binomial_and_chi_square(first: int, second: int) -> None:
    found = mcnemar(first, second)
    if first + second:
        exact = binomtest(first, first + second, 0.5).pvalue
        assert found.exact_p == pytest.approx(exact, rel=1e-6, abs=1e-300)
        assert found.p == pytest.approx(chi2.sf(found.statistic, 1), rel=1e-6, abs=1e-300)


def results(labels: Sequence[str | None], answers: Sequence[str | None]) -> list[dict[str, Any]]:
    """Results as the service shows them; an answer of None failed."""
    return [
        {
            "ordinal": place,
            "custom_id": f"{place}.png",
            "state": "failed" if best is None else "succeeded",
            "prediction": None if best is None else [{"class": best, "score": 0.9}],
            "label": label,
        }
        for place, (label, best) in enumerate(zip(labels, answers, strict=True))
    ]


def read(rows: Sequence[dict[str, Any]]) -> list[Result]:
    return [Result.from_dict(row) for row in rows]


def test_scores_of_both_are_those_of_scikit_learn() -> None:
    labels = ["cat", "cat", "dog", "dog", "gnu", "cat"]
    first = ["cat", "dog", "dog", "dog", "cat", "cat"]
    second = ["cat", "cat", "dog", "gnu", "cat", "dog"]
    found = compare_results(read(results(labels, first)), read(results(labels, second)), NAMES)
    for side, answers in enumerate((first, second)):
        assert found.accuracy[side] == pytest.approx(accuracy_score(labels, answers))
        words = {"labels": list(NAMES), "average": None, "zero_division": 0}
        f1 = f1_score(labels, answers, **words)
        recall = recall_score(labels, answers, **words)
        assert [each.f1[side] for each in found.per_class] == pytest.approx(f1)
        assert [each.recall[side] for each in found.per_class] == pytest.approx(recall)
    assert (found.both_right, found.both_wrong) == (2, 1)
    assert (found.mcnemar.only_first_right, found.mcnemar.only_second_right) == (2, 1)
    assert [each.images for each in found.per_class] == [3, 2, 1]


def test_images_that_cannot_be_compared_are_left_out_and_counted() -> None:
    labels = ["cat", None, "zebra", "dog", "dog", "cat"]
    first = read(results(labels, ["cat", "cat", "cat", None, "dog", "cat"]))
    second = read(results(labels, ["cat", "cat", "cat", "dog", "dog", "cat"]))
    # One lacks the last image, and its place four holds another one.
    second = [*second[:4], Result.from_dict({**second[4].raw, "custom_id": "other.png"})]
    found = compare_results(first, second, NAMES)
    assert (found.images, found.left_out) == (1, 5)
    assert found.accuracy == (1.0, 1.0)


@pytest.fixture
def two_versions(service: FakeService) -> FakeService:
    labels = ["cat", "dog", "dog", "cat"]
    for number, answers in ((3, ["cat", "cat", "dog", "dog"]), (4, ["cat", "dog", "dog", "cat"])):
        speed = {"device": "H200", "images_per_second": 1240.4, "images": 12_000}
        version = {
            "id": f"mdv_{number}",
            "classes": ["cat", "dog"],
            "number": number,
            "speeds": [speed] if number == 4 else [],
        }
        here = f"GET /v1/models/pets/versions/{number}"
        row = {
            "id": f"evl_{number}",
            "dataset": "zoo@1",
            "split": "test",
            "job_id": f"job_{number}",
        }
        other = {**row, "id": "evl_0", "dataset": f"own@{number}", "job_id": "job_0"}
        service.on(here, answer(version))
        service.on(f"{here}/evaluations", page([other, row]))
        service.on(f"GET /v1/jobs/job_{number}", answer(job(id=f"job_{number}", kind="evaluate")))
        service.on(f"GET /v1/jobs/job_{number}/results", page(results(labels, answers)))
    return service


def test_compare_prints_both_accuracies_the_test_and_the_classes(two_versions, run) -> None:
    done = run("models", "compare", "pets@3", "pets@4")
    assert done.exit_code == Exit.DONE, done.stderr
    assert "4 of zoo@1, test" in done.stdout
    assert "1.0000  (+0.5000)" in done.stdout
    assert "p = 0.5 (exact): the difference may well be chance" in done.stdout
    told = "speed of pets@4 1,240 images/s, the network alone –, on H200 (12,000 images)"
    assert told in " ".join(done.stdout.split())
    body = json.loads(run("models", "compare", "pets@3", "pets@4", "--json").stdout)
    assert body["jobs"] == ["job_3", "job_4"]
    assert body["mcnemar"]["only_second_right"] == 2
    assert [len(each) for each in body["speeds"]] == [0, 1]
    assert [each["name"] for each in body["per_class"]] == ["cat", "dog"]


def test_no_number_of_a_comparison_is_cut_on_a_narrow_terminal(
    two_versions, run, monkeypatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, width=56, force_terminal=True, color_system=None)
    monkeypatch.setattr("app.cli.console.stdout", lambda: terminal)
    run("models", "compare", "pets@3", "pets@4")
    heads, _, cat, *_ = screen.getvalue().partition("class ")[2].splitlines()
    assert heads.split() == ["images", "F1", "pets@3", "F1", "pets@4", "F1", "gain"]
    assert all(len(number.lstrip("+-")) == len("0.0000") for number in cat.split()[2:])


def test_versions_without_images_in_common_are_not_compared(two_versions, run) -> None:
    done = run("models", "compare", "pets@3", "pets@4", "--dataset", "elsewhere")
    assert done.exit_code == Exit.REFUSED
    assert "darkroom evaluate" in done.stderr
