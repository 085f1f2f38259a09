"""Watching a job by the command line until it ends: its sums, its exit codes."""

import io
import json

import pytest
from rich.console import Console

from app.cli.exits import Exit
from tests.unit.fake_service import answer, job, page


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("succeeded", Exit.DONE),
        ("partially_succeeded", Exit.PARTIAL),
        ("failed", Exit.FAILED),
        ("cancelled", Exit.CANCELLED),
    ],
)
def test_watch_exits_with_the_code_of_the_jobs_end(service, run, state, code):
    service.on("GET /v1/jobs/job_1", answer(job(state)))
    assert run("watch", "job_1").exit_code == code
    shown = run("watch", "job_1", "--json")
    assert shown.exit_code == code
    assert json.loads(shown.stdout)["state"] == state


def test_watch_sums_up_what_failed_by_code(service, run):
    counts = {"succeeded": 1, "failed": 3}
    service.on("GET /v1/jobs/job_1", answer(job("partially_succeeded", counts=counts)))
    failed = [
        {"ordinal": n, "source": f"{n}.png", "state": "failed", "error": {"code": code}}
        for n, code in enumerate(["undecodable", "truncated", "undecodable"])
    ]
    service.on("GET /v1/jobs/job_1/errors", page(failed))
    done = run("watch", "job_1")
    assert done.exit_code == Exit.PARTIAL
    assert "3 images failed:" in done.stderr
    assert "2  undecodable, such as 0.png" in done.stderr
    assert "1  truncated, such as 1.png" in done.stderr


def test_watch_of_a_finetune_prints_every_epoch_once(service, run):
    def training(state, step, steps=3, unit="epoch"):
        progress = {"fraction": step / steps, "step": step, "steps": steps, "unit": unit}
        none = {"total": 0, "done": 0, "succeeded": 0}
        return job(state, kind="finetune", progress=progress, counts=none, images_per_second=None)

    def metrics(upto):
        return page(
            [
                {"id": f"{step}:{name}", "name": name, "step": step, "value": 0.5 / step}
                for step in range(1, upto + 1)
                for name in ("learning_rate", "train_accuracy", "train_loss", "test_accuracy")
            ]
        )

    service.on(
        "GET /v1/jobs/job_1",
        answer(training("running", 40, 120, "image"), ETag='"0"'),
        answer(training("running", 1), ETag='"1"'),
        # Another worker goes on, and reads the images first.
        answer(training("running", 40, 120, "image"), ETag='"1b"'),
        answer(training("running", 2), ETag='"2"'),
        answer(training("succeeded", 3), ETag='"3"'),
    )
    service.on("GET /v1/jobs/job_1/metrics", metrics(1), metrics(2), metrics(3))
    done = run("watch", "job_1")
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert lines == [
        "epoch 1/3  train loss 0.5000 accuracy 0.5000  test accuracy 0.5000",
        "epoch 2/3  train loss 0.2500 accuracy 0.2500  test accuracy 0.2500",
        "epoch 3/3  train loss 0.1667 accuracy 0.1667  test accuracy 0.1667",
    ]


def test_timeout_of_a_watch_is_exit_code_7(service, run, monkeypatch):
    moments = map(float, range(100))
    clock = {"now": lambda: next(moments)}
    monkeypatch.setattr("app.client.jobs.Jobs.__init__.__kwdefaults__", clock)
    service.on("GET /v1/jobs/job_1", answer(job("running"), ETag='"1"'))
    assert run("watch", "job_1", "--timeout", 5).exit_code == Exit.TIMEOUT


def test_watch_of_a_cancelled_job_counts_only_images_that_were_touched(service, run):
    counts = {"total": 10, "done": 4, "succeeded": 4, "failed": 0, "skipped": 0, "cancelled": 6}
    service.on("GET /v1/jobs/job_1", answer(job("cancelled", counts=counts), ETag='"1"'))
    done = run("watch", "job_1")
    assert done.exit_code == Exit.CANCELLED
    assert "cancelled: 40% 4 of 10 images" in done.stderr
    assert "job_1 cancelled: 4 of 10 images" in done.stdout


def test_watch_of_a_finetune_draws_curves_on_a_terminal(service, run, monkeypatch):
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, width=60, height=24)
    monkeypatch.setattr("app.cli.progress.stderr", lambda: screen)
    progress = {"fraction": 1.0, "step": 3, "steps": 3, "unit": "epoch"}
    none = {"total": 0, "done": 0, "succeeded": 0}
    ended = job("succeeded", kind="finetune", progress=progress, counts=none)
    service.on("GET /v1/jobs/job_1", answer(ended))
    rows = [
        {"id": f"{step}:{name}", "name": name, "step": step, "value": 0.5 / step}
        for step in (1, 2, 3)
        for name in ("learning_rate", "train_accuracy", "train_loss", "test_loss")
    ]
    service.on("GET /v1/jobs/job_1/metrics", page(rows))
    assert run("watch", "job_1").exit_code == Exit.DONE
    shown = written.getvalue()
    for title in ("loss", "accuracy", "learning rate"):
        assert f"{title} " in shown
    assert "0.5000 0.1667 0.1667" in shown


def test_metrics_of_a_training_are_a_table_in_a_pipe_and_plain_rows_as_json(service, run):
    rows = [
        {"id": f"{step}:{name}", "name": name, "step": step, "value": value}
        for step, name, value in (
            (1, "test_loss", 1.25),
            (1, "train_loss", 1.5),
            (2, "test_loss", None),
            (2, "train_loss", 0.75),
        )
    ]
    service.on("GET /v1/jobs/job_1", answer(job(kind="finetune")))
    service.on("GET /v1/jobs/job_1/metrics", page(rows))
    table = [line.split() for line in run("metrics", "job_1").stdout.splitlines()]
    assert table == [["EPOCH", "TEST_LOSS", "TRAIN_LOSS"], ["1", "1.25", "1.5"], ["2", "0.75"]]
    assert json.loads(run("metrics", "job_1", "--json").stdout) == rows


def test_event_file_of_a_training_is_written_to_a_folder(service, run, tmp_path):
    service.on("GET /v1/jobs/job_1", answer(job(kind="finetune")))
    service.on("GET /v1/jobs/job_1/metrics", page([]))
    service.on("GET /v1/jobs/job_1/artifacts", page([]))
    for folder in (tmp_path, tmp_path / "runs"):
        refused = run("metrics", "job_1", "--tensorboard", folder)
        assert refused.exit_code == Exit.USAGE
        assert "no event file" in refused.output
    nowhere = run("metrics", "job_1", "--tensorboard", tmp_path / "none" / "runs")
    assert nowhere.exit_code == Exit.USAGE
    assert "none can be made there" in " ".join(nowhere.output.split())
    assert not list(tmp_path.iterdir())


def test_metrics_of_a_search_are_a_table_of_its_trials(service, run):
    service.on("GET /v1/jobs/job_1", answer(job(kind="search")))
    row = {"id": "0:validation_accuracy", "name": "validation_accuracy", "step": 0, "value": 0.5}
    service.on("GET /v1/jobs/job_1/metrics", page([row]))
    table = [line.split() for line in run("metrics", "job_1").stdout.splitlines()]
    assert table == [["TRIAL", "VALIDATION_ACCURACY"], ["0", "0.5"]]


@pytest.mark.parametrize(("result", "named"), [({"model_version": "mdv_1"}, True), (None, False)])
def test_version_that_a_cancelled_training_kept_is_named(service, run, result, named):
    version = {"id": "mdv_1", "name": "pets", "number": 2}
    ended = job("cancelled", kind="finetune", result=result, model_version=version)
    service.on("GET /v1/jobs/job_1", answer(ended))
    service.on("GET /v1/jobs/job_1/metrics", page([]))
    done = run("watch", "job_1")
    assert done.exit_code == Exit.CANCELLED
    assert ("pets@2" in done.stdout) == named


def test_recipe_of_a_job_stands_apart_from_its_options(service, run):
    options = {"model": "pets", "recipe": {"epochs": 3, "augment": {"flip": True}}}
    service.on("GET /v1/jobs/job_1", answer(job(kind="finetune", options=options)))
    service.on("GET /v1/jobs/job_1/artifacts", page([]))
    lines = {line.split()[0]: line.split()[1:] for line in run("job", "job_1").stdout.splitlines()}
    assert lines["options"] == ["model=pets"]
    assert lines["recipe"] == ["epochs=3", "augment.flip=True"]


def test_numbers_of_a_list_are_rounded_like_those_that_stand_alone(service, run):
    result = {"accuracy": 2 / 3, "accuracy_interval": [1 / 3, 0.75]}
    service.on("GET /v1/jobs/job_1", answer(job(kind="evaluate", result=result)))
    service.on("GET /v1/jobs/job_1/artifacts", page([]))
    assert "accuracy=0.6667 accuracy_interval=0.3333,0.75" in run("job", "job_1").stdout
