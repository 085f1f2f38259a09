"""A promotion that lacks evaluations submits them, waits, and asks again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.cli.exits import Exit
from tests.unit.fake_service import FakeService, answer, job, page, problem, sent

ALIAS = "/v1/models/pets/aliases/production"
VERSIONS = "/v1/models/pets/versions"
MISSING = problem(409, "evaluation_missing", "evaluate both first")
GATE = {"metric": "f1", "margin": 0.0, "minimum": None, "dataset": "zoo"}
#: ``zoo`` has a test split since its second version.
ZOO = [
    {"id": "dsv_2", "name": "zoo", "number": 2, "counts": {"train": {"a": 4}, "test": {"a": 1}}},
    {"id": "dsv_1", "name": "zoo", "number": 1, "counts": {"train": {"a": 9}, "test": {}}},
]


def evaluation(dataset: str, split: str | None = "test", **metrics: float) -> dict[str, Any]:
    return {"id": "evl_1", "dataset": dataset, "split": split, "metrics": metrics, "items": 9}


def place(service: FakeService, gate: dict[str, Any] | None, *promotions: Any) -> None:
    """Version 1 is in place, 2 shall come; ``promotions`` are the answers to that."""
    alias = {"model": "pets", "alias": "production", "version": 1, "gate": gate}
    service.on(f"GET {ALIAS}", answer(alias))
    moved = {**alias, "version": 2, "verdict": {"reason": "f1 is 0.9000 on zoo@2 test"}}
    service.on(f"POST {ALIAS}/promote", *(promotions or (MISSING, answer(moved))))
    service.on("GET /v1/datasets/zoo/versions", page(ZOO))


def known(service: FakeService, number: int, *rows: dict[str, Any]) -> None:
    service.on(f"GET {VERSIONS}/{number}/evaluations", page(list(rows)))


def bodies(service: FakeService) -> list[tuple[str, dict[str, Any]]]:
    """Model and input of every job that was submitted."""
    posted = [json.loads(request.content) for request in service.asked("POST /v1/jobs")]
    assert all(body["kind"] == "evaluate" for body in posted)
    return [(body["model"], body["input"]) for body in posted]


def test_versions_are_evaluated_on_the_gates_newest_images_where_they_were_not(
    service: FakeService, run: Any
) -> None:
    place(service, GATE)
    # On images of before, and without the metric: neither counts.
    known(service, 1, evaluation("zoo@2", accuracy=0.8), evaluation("zoo@1", f1=0.8))
    known(service, 2, evaluation("zoo@2", "validation", f1=0.8))
    service.on("POST /v1/jobs", answer(job("queued", kind="evaluate"), 202))
    service.on("GET /v1/jobs/job_1", answer(job(kind="evaluate")))
    done = run("models", "promote", "pets@2", "--evaluate")
    assert done.exit_code == Exit.DONE, done.stderr
    assert "pets@production is now pets@2: f1 is 0.9000" in done.stdout
    images = {"dataset": "zoo@2", "split": "test"}
    assert bodies(service) == [("pets@2", images), ("pets@1", images)]


def test_images_of_the_newest_evaluation_are_taken_where_no_dataset_is_named(
    service: FakeService, run: Any
) -> None:
    place(service, None)
    known(service, 1)
    known(service, 2, evaluation("farm@7", None, accuracy=0.9))
    service.on("POST /v1/jobs", answer(job("queued", kind="evaluate"), 202))
    service.on("GET /v1/jobs/job_1", answer(job(kind="evaluate")))
    words = ("models", "promote", "pets@2", "--evaluate", "--metric", "accuracy", "--json")
    assert json.loads(run(*words).stdout)["version"] == 2
    assert bodies(service) == [("pets@1", {"dataset": "farm@7"})]
    assert sent(service, f"POST {ALIAS}/promote")["gate"]["metric"] == "accuracy"


@pytest.mark.parametrize(
    ("words", "gate", "refusal", "rows", "ends", "told"),
    [
        ([], GATE, MISSING, [], "succeeded", "evaluate both first"),
        (
            ["--evaluate"],
            GATE,
            problem(409, "gate_not_passed", "too bad"),
            [],
            "succeeded",
            "too bad",
        ),
        # Both were, and one answered fewer: another evaluation would find the same.
        (["--evaluate"], GATE, MISSING, [evaluation("zoo@2", f1=0.9)], "succeeded", "both first"),
        (["--evaluate"], {**GATE, "dataset": None}, MISSING, [], "succeeded", "name a dataset"),
        (["--evaluate"], GATE, MISSING, [], "failed", "job_1 ended failed"),
    ],
    ids=["not asked for", "not passed", "nothing missing", "no images", "failed"],
)
def test_nothing_is_promoted_where_evaluations_do_not_help(
    service: FakeService,
    run: Any,
    words: list[str],
    gate: dict[str, Any],
    refusal: Any,
    rows: list[dict[str, Any]],
    ends: str,
    told: str,
) -> None:
    place(service, gate, refusal)
    known(service, 1, *rows)
    known(service, 2, *rows)
    service.on("POST /v1/jobs", answer(job("queued", kind="evaluate"), 202))
    service.on("GET /v1/jobs/job_1", answer(job(ends, kind="evaluate")))
    done = run("models", "promote", "pets@2", *words)
    assert done.exit_code == Exit.REFUSED
    assert told in done.stderr
    assert len(service.asked(f"POST {ALIAS}/promote")) == 1
    assert len(bodies(service)) == (2 if ends == "failed" else 0)


def test_first_version_of_an_alias_is_evaluated_alone(service: FakeService, run: Any) -> None:
    place(service, None)
    service.on("GET /v1/models/pets/aliases/staging", problem(404, "model_not_found", "no alias"))
    moved = {"version": 2, "verdict": {"reason": "fine"}}
    where = "POST /v1/models/pets/aliases/staging/promote"
    service.on(where, MISSING, answer(moved))
    known(service, 2)
    service.on("POST /v1/jobs", answer(job("queued", kind="evaluate"), 202))
    service.on("GET /v1/jobs/job_1", answer(job(kind="evaluate")))
    words = ("--alias", "staging", "--metric", "f1", "--minimum", "0.5", "--dataset", "zoo")
    done = run("models", "promote", "pets@2", "--evaluate", *words)
    assert done.exit_code == Exit.DONE, done.stderr
    assert bodies(service) == [("pets@2", {"dataset": "zoo@2", "split": "test"})]
