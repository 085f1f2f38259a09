import hashlib
import json
from datetime import UTC, datetime

import httpx2
import pytest
import typer

from app.cli.exits import Exit
from app.cli.limits import read_deadline, read_max_failed
from tests.unit.fake_service import answer, job, page, problem, sent

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("verb", "state"), [("cancel", "cancelling"), ("pause", "paused"), ("resume", "running")]
)
def test_each_verb_says_the_state_that_the_job_is_in_now(service, run, verb, state):
    service.on(f"POST /v1/jobs/job_1/{verb}", answer(job(state), 202))
    assert run(verb, "job_1").stdout == f"job_1 {state}\n"
    assert json.loads(run(verb, "job_1", "--json").stdout)["state"] == state


def test_pause_of_a_job_that_has_ended_is_refused(service, run):
    service.on("POST /v1/jobs/job_1/pause", problem(409, "job_ended", "it has ended"))
    done = run("pause", "job_1")
    assert done.exit_code == Exit.REFUSED
    assert "it has ended" in done.stderr


def test_retry_sends_only_what_was_given_and_prints_the_new_id(service, run):
    service.on("POST /v1/jobs/job_1/retry", answer(job("validating", id="job_2"), 202))
    done = run("retry", "job_1")
    assert (done.exit_code, done.stdout) == (Exit.DONE, "job_2\n")
    assert sent(service, "POST /v1/jobs/job_1/retry") == {"which": "all"}
    run(
        *("retry", "job_1", "--which", "failed", "-m", "pets@4", "-k", 1, "--priority", 0),
        *("--deadline", "2126-01-01T00:00:00+00:00", "--max-failed", "3", "--max-failed", "5%"),
        *("--metadata", "a=b"),
    )
    assert sent(service, "POST /v1/jobs/job_1/retry") == {
        "which": "failed",
        "model": "pets@4",
        "options": {"top_k": 1},
        "priority": 0,
        "deadline": "2126-01-01T00:00:00+00:00",
        "max_failed": {"items": 3, "fraction": 0.05},
        "metadata": {"a": "b"},
    }


def test_watched_retry_ends_with_the_code_of_its_end(service, run):
    service.on("POST /v1/jobs/job_1/retry", answer(job("validating", id="job_2"), 202))
    service.on("GET /v1/jobs/job_2", answer(job(id="job_2")))
    done = run("retry", "job_1", "--watch")
    assert done.exit_code == Exit.DONE
    assert done.stdout.startswith("✓ job_2 succeeded")


def test_submit_and_finetune_send_limits_and_priority(service, run):
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    until = ("--deadline", "2126-01-01T00:00:00+00:00", "--priority", 7)
    run("submit", "s3://b/p", "-m", "digits", *until, "--max-failed", "10%")
    asked = sent(service, "POST /v1/jobs")
    assert asked["deadline"] == "2126-01-01T00:00:00+00:00"
    assert (asked["priority"], asked["max_failed"]) == (7, {"fraction": 0.1})
    run("finetune", "-d", "pets@1", "-m", "pets", *until)
    asked = sent(service, "POST /v1/jobs")
    assert (asked["kind"], asked["priority"]) == ("finetune", 7)
    assert asked["deadline"] == "2126-01-01T00:00:00+00:00"


def test_finetune_sends_the_fields_that_were_given(service, run):
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    run(
        *("finetune", "-d", "pets@1", "-m", "pets", "--preset", "best", "--start", "photos@2"),
        *("--max-time", "10m", "--batch-size", 0, "--alias", ""),
        *("--set", "augment.flip=true", "--set", "augment.policy=randaugment"),
        *("--set", "ema_decay=0.99", "--set", "arch_options.preset=small"),
        *("--set", "momentum=NaN", "--set", "clip_norm=1e999"),
    )
    assert sent(service, "POST /v1/jobs")["options"] == {
        "preset": "best",
        "start": "photos@2",
        "max_seconds": 600,
        "train_batch_size": 0,
        "alias": None,
        "augment": {"flip": True, "policy": "randaugment"},
        "ema_decay": 0.99,
        "arch_options": {"preset": "small"},
        # Words, as JSON knows no such numbers: the service names the field that it refuses.
        "momentum": "NaN",
        "clip_norm": "1e999",
    }


@pytest.mark.parametrize("text", ["flip", "=1", "seed=1", "seed.a=1"])
def test_field_that_cannot_be_read_is_refused_before_anything_is_sent(service, run, text):
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    options = ("-d", "pets@1", "-m", "pets", "--set", "seed=1", "--set", text)
    done = run("finetune", *options)
    if text == "seed=1":
        assert sent(service, "POST /v1/jobs")["options"]["seed"] == 1
    else:
        assert done.exit_code == Exit.USAGE


def test_zero_failed_images_are_a_budget_too(service, run):
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    run("submit", "s3://b/p", "-m", "digits", "--max-failed", 0)
    assert sent(service, "POST /v1/jobs")["max_failed"] == {"items": 0}


def test_export_replaces_a_file_only_by_force(service, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.csv").write_text("mine")
    service.on("POST /v1/jobs", answer(job("queued", id="job_2", kind="export"), 202))
    service.on("GET /v1/jobs/job_2", answer(job("failed", id="job_2", kind="export")))
    for words in (("-o", "results.csv"), ("-o", tmp_path, "-f", "csv"), ("-f", "csv")):
        refused = run("export", "job_1", *words)
        assert refused.exit_code == Exit.USAGE
        told = " ".join(refused.stderr.replace("│", "").split())
        assert "is there already; give another name, or --force to replace it" in told
        assert service.asked("POST /v1/jobs") == []
        assert run("export", "job_1", *words, "--force").exit_code == Exit.FAILED
        service.requests.clear()
    assert (tmp_path / "results.csv").read_text() == "mine"


def test_export_with_retries_asks_for_them(service, run, tmp_path):
    service.on("POST /v1/jobs", answer(job("queued", id="job_2", kind="export"), 202))
    service.on("GET /v1/jobs/job_2", answer(job("failed", id="job_2", kind="export")))
    run("export", "job_1", "--include-retries", "-o", tmp_path / "a.csv")
    assert sent(service, "POST /v1/jobs")["options"]["include_retries"] is True


def test_expired_job_has_its_own_exit_code_and_says_what_was_not_touched(service, run):
    counts = {"total": 4, "done": 1, "succeeded": 1, "expired": 3}
    service.on("GET /v1/jobs/job_1", answer(job("expired", counts=counts)))
    done = run("watch", "job_1")
    assert done.exit_code == Exit.EXPIRED
    assert "job_1 expired" in done.stdout
    assert "3 images not touched" in done.stdout
    assert "darkroom retry job_1" in done.stdout


def test_job_of_a_model_that_was_taken_back_is_to_be_retried_with_another(service, run):
    counts = {"total": 4, "done": 1, "succeeded": 1, "cancelled": 3}
    error = {"code": "model_grant_revoked", "detail": "owner/pets is not shared any more"}
    service.on("GET /v1/jobs/job_1", answer(job("failed", counts=counts, error=error)))
    assert "darkroom retry job_1 --model ANOTHER" in run("watch", "job_1").stdout


def test_job_shows_its_limits(service, run):
    service.on(
        "GET /v1/jobs/job_1",
        answer(
            job(
                "paused",
                deadline_at="2126-01-01T00:00:00+00:00",
                max_failed={"items": 3, "fraction": None},
                retry_of="job_0",
            )
        ),
    )
    service.on("GET /v1/jobs/job_1/artifacts", page([]))
    shown = run("job", "job_1").stdout
    assert "2126-01-01" in shown
    assert "items=3" in shown
    assert "job_0" in shown
    assert "paused" in shown


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-12-24T18:00:00+01:00", "2026-12-24T17:00:00+00:00"),
        ("2026-12-24T18:00:00Z", "2026-12-24T18:00:00+00:00"),
        ("90s", "2026-12-01T12:01:30+00:00"),
        ("90m", "2026-12-01T13:30:00+00:00"),
        ("2h", "2026-12-01T14:00:00+00:00"),
        ("1d", "2026-12-02T12:00:00+00:00"),
    ],
)
def test_deadline_is_a_moment_or_a_time_from_now(text, moment):
    assert read_deadline(text, NOW) == datetime.fromisoformat(moment)


def test_deadline_without_an_offset_is_the_machines_own_time():
    read = read_deadline("2026-12-24T18:00:00")
    assert read == datetime(2026, 12, 24, 18).astimezone()


@pytest.mark.parametrize("text", ["tomorrow", "2x", "-1h", "", "h"])
def test_other_deadlines_are_usage_errors(text):
    with pytest.raises(typer.BadParameter):
        read_deadline(text)


@pytest.mark.parametrize("text", ["x", "-1", "101%", "1.5", "%", "", "nan%"])
def test_other_budgets_are_usage_errors(text):
    with pytest.raises(typer.BadParameter):
        read_max_failed([text])


def test_no_limits_are_none():
    assert read_deadline(None) is None
    assert read_max_failed(None) is None


@pytest.mark.parametrize("texts", [["5", "6"], ["5%", "5", "6%"]])
def test_second_budget_of_the_same_kind_is_a_usage_error(texts):
    with pytest.raises(typer.BadParameter, match="at most"):
        read_max_failed(texts)


def test_evaluate_sends_what_was_given_and_fetches_the_report(service, run, tmp_path):
    body = b"<!doctype html>"
    artifact = {
        "id": "art_1",
        "name": "report.html",
        "size_bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    others = [
        {**artifact, "id": f"art_{name}", "name": f"report.{name}"} for name in ("csv", "json")
    ]
    done_job = job(id="job_2", kind="evaluate", result={"accuracy": 0.9778, "auc": None})
    service.on("POST /v1/jobs", answer(job("validating", id="job_2", kind="evaluate"), 202))
    service.on("GET /v1/jobs/job_2", answer(done_job))
    service.on("GET /v1/jobs/job_2/artifacts", page([*others, artifact]))
    service.on("GET /v1/artifacts/art_1/content", httpx2.Response(200, content=body))
    out = tmp_path / "pets.html"
    asked = ("evaluate", "-m", "pets@3", "-d", "pets@1", "--split", "test", "--hardest", 0)
    done = run(*asked, "--report", out)
    assert done.exit_code == Exit.DONE, done.stderr
    assert out.read_bytes() == body
    assert "accuracy 0.9778" in done.stdout
    assert sent(service, "POST /v1/jobs") == {
        "kind": "evaluate",
        "model": "pets@3",
        "input": {"dataset": "pets@1", "split": "test"},
        "options": {"hardest": 0},
    }
    assert run(*asked, "--report", tmp_path / "pets.pdf").exit_code == Exit.USAGE
    assert run(*asked, "--report", tmp_path / "no" / "pets.html").exit_code == Exit.USAGE
    assert run(*asked, "--report", out).exit_code == Exit.USAGE
    assert run(*asked, "--report", out, "--force").exit_code == Exit.DONE
    assert run("evaluate", "-m", "pets").exit_code == Exit.USAGE
    assert run("evaluate", "-m", "pets", "--upload", "upl_1").stdout == "job_2\n"
    assert sent(service, "POST /v1/jobs")["input"] == {"upload": "upl_1"}
