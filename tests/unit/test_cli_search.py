"""``darkroom search`` and ``darkroom trials`` against an acted service."""

from __future__ import annotations

import json

import pytest

from app.cli.exits import Exit
from tests.unit.fake_service import answer, job, page, sent

TRIALS = [
    {
        "number": number,
        "state": state,
        "parameters": {"learning_rate": 0.01 * (number + 1), "optimizer": "sgd"},
        "epochs": [{"epoch": 1, "accuracy": accuracy, "loss": loss}],
        "accuracy": accuracy if state == "complete" else None,
        "loss": loss if state == "complete" else None,
        "error": {"code": "training_diverged", "detail": "no"} if state == "failed" else None,
        "started_at": "2026-12-01T12:00:00+00:00",
        "ended_at": None if state == "running" else "2026-12-01T12:01:30+00:00",
    }
    for number, (state, accuracy, loss) in enumerate(
        [
            ("pruned", 0.1, 2.0),
            ("complete", 0.8, 0.4),
            ("failed", None, None),
            ("complete", 0.9, 0.6),
            ("running", 0.5, 1.0),
        ]
    )
]


def test_search_sends_what_was_given(service, run):
    service.on("POST /v1/jobs", answer(job("queued", kind="search"), 202))
    run(
        *("search", "-d", "pets@1", "-m", "pets", "--trials", 9, "--preset", "quick"),
        *("--space", "learning_rate=1e-4..1e-1:log", "--space", "epochs=3..9"),
        *("--space", "optimizer=sgd,adamw", "--space", "augment.flip=true, false"),
        *("--set", "augment.magnitude=5", "--max-time", "2h", "--metric", "loss"),
        *("--pruner", "none", "--alias", "", "--seed", 4),
    )
    assert sent(service, "POST /v1/jobs") == {
        "kind": "search",
        "model": "pets",
        "input": {"dataset": "pets@1"},
        "options": {
            "space": {
                "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
                "epochs": {"low": 3, "high": 9},
                "optimizer": {"choices": ["sgd", "adamw"]},
                "augment.flip": {"choices": [True, False]},
            },
            "trials": 9,
            "recipe": {"preset": "quick", "augment": {"magnitude": 5}},
            "max_seconds": 7200,
            "metric": "loss",
            "pruner": "none",
            "seed": 4,
            "alias": None,
        },
    }


@pytest.mark.parametrize(
    "text", ["learning_rate=a..b", "learning_rate=NaN..1", "learning_rate", "learning_rate="]
)
def test_space_that_means_nothing_is_a_usage_error(service, run, text):
    done = run("search", "-d", "pets@1", "-m", "pets", "--space", text)
    assert done.exit_code == Exit.USAGE


def test_number_of_a_recipe_that_is_none_is_a_usage_error(service, run):
    done = run("finetune", "-d", "pets@1", "-m", "pets", "--learning-rate", "nan")
    assert done.exit_code == Exit.USAGE
    assert "--learning-rate" in done.output


@pytest.mark.parametrize(
    ("metric", "order"), [("accuracy", [3, 1, 0, 2, 4]), ("loss", [1, 3, 0, 2, 4])]
)
def test_trials_stand_best_first(service, run, metric, order):
    service.on("GET /v1/jobs/job_1", answer(job(kind="search", options={"metric": metric})))
    service.on("GET /v1/jobs/job_1/trials", page(TRIALS))
    found = json.loads(run("trials", "job_1", "--json").stdout)
    assert [trial["number"] for trial in found] == order
    table = run("trials", "job_1").stdout
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == order
    assert "learning_rate=0.04 optimizer=sgd" in table
    assert "[training_diverged]" in table


def test_watch_of_a_search_prints_every_trial_as_it_ends(service, run):
    def searching(state, done):
        counts = {"total": 4, "done": done, "succeeded": done - 1, "skipped": 1}
        result = {"trial": 3, "accuracy": 0.88, "parameters": {"learning_rate": 0.04}}
        version = {"id": "mdv_1", "name": "pets", "number": 2}
        return job(
            state,
            kind="search",
            counts=counts,
            result=result,
            model_version=version,
            images_per_second=None,
        )

    service.on(
        "GET /v1/jobs/job_1",
        answer(searching("running", 2), ETag='"1"'),
        answer(searching("succeeded", 4), ETag='"2"'),
    )
    service.on("GET /v1/jobs/job_1/trials", page(TRIALS[:2]), page(TRIALS[:4]))
    done = run("watch", "job_1")
    lines = [line for line in done.stderr.splitlines() if line.startswith("trial ")]
    assert lines == [
        "trial 0  pruned  learning_rate=0.01 optimizer=sgd",
        "trial 1  complete  accuracy 0.8000 loss 0.4000  learning_rate=0.02 optimizer=sgd",
        "trial 2  failed  [training_diverged]  learning_rate=0.03 optimizer=sgd",
        "trial 3  complete  accuracy 0.9000 loss 0.6000  learning_rate=0.04 optimizer=sgd",
    ]
    assert "4 trials" in done.stdout
    assert "pets@2" in done.stdout
    assert "trial 3  learning_rate=0.04" in done.stdout
    assert "accuracy 0.8800" in done.stdout
