"""The command line against a service in memory: what it prints, asks for and exits with."""

import hashlib
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from rich.console import Console
from typer.main import get_command

from app.cli.exits import EXIT_CODES, Exit
from app.cli.main import app
from tests.unit.fake_service import UPLOAD, URL, answer, job, page, problem, sent


def test_results_are_a_table_for_people_and_lines_for_machines(service, run):
    rows = [
        {
            "ordinal": 0,
            "custom_id": "a.png",
            "state": "succeeded",
            "label": "cat",
            "prediction": [{"class": "cat", "score": 0.9}, {"class": "dog", "score": 0.1}],
        },
        {
            "ordinal": 1,
            "custom_id": "b.png",
            "state": "failed",
            "prediction": None,
            "error": {"code": "truncated", "detail": "the image ends early"},
        },
    ]
    service.on("GET /v1/jobs/job_1/results", page(rows))
    table = run("results", "job_1").stdout.splitlines()
    assert table[0].split() == ["IMAGE", "CLASS", "SCORE", "LABEL", "OTHERS"]
    assert table[1].split() == ["a.png", "cat", "0.9000", "cat", "dog", "0.10"]
    assert "the image ends early [truncated]" in table[2]
    lines = run("results", "job_1", "--json").stdout.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a.png", "b.png"]


def test_export_submits_waits_downloads_and_verifies(service, run, tmp_path):
    body = b'{"custom_id":"a"}\n'
    digest = hashlib.sha256(body).hexdigest()
    artifact = {"id": "art_1", "name": "job_1.csv", "size_bytes": len(body), "sha256": digest}
    manifest = {"id": "art_2", "name": "manifest.json", "size_bytes": 2, "sha256": "x"}
    service.on("POST /v1/jobs", answer(job("queued", id="job_2", kind="export"), 202))
    service.on("GET /v1/jobs/job_2", answer(job(id="job_2", kind="export")))
    service.on("GET /v1/jobs/job_2/artifacts", page([manifest, artifact]))
    service.on("GET /v1/artifacts/art_1/content", httpx2.Response(200, content=body))
    out = tmp_path / "mine.csv"
    done = run("export", "job_1", "--output", out)
    assert done.exit_code == Exit.DONE, done.stderr
    assert out.read_bytes() == body
    assert digest in done.stdout
    assert sent(service, "POST /v1/jobs")["options"] == {"format": "csv", "only": "all"}


def test_import_uploads_the_weights_and_reads_the_classes(service, run, tmp_path):
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"w")
    classes = tmp_path / "classes.json"
    classes.write_text('{"0": ["n01", "cat"], "1": ["n02", "dog"]}')
    upload = {**UPLOAD, "kind": "weights"}
    version = {"id": "mdv_1", "name": "pets", "number": 1}
    service.on("POST /v1/uploads", answer({"upload": upload, "job": None}, 201))
    service.on("POST /v1/models/pets/versions", answer(job("queued", kind="import"), 202))
    service.on("GET /v1/jobs/job_1", answer(job(kind="import", model_version=version)))

    done = run(
        "models", "import", "pets", "--arch", "resnet18", "--weights", weights, "--classes", classes
    )
    assert done.exit_code == Exit.DONE
    assert "pets@1  mdv_1" in done.stdout
    assert dict(service.asked("POST /v1/uploads")[0].url.params)["kind"] == "weights"
    assert sent(service, "POST /v1/models/pets/versions") == {
        "arch": "resnet18",
        "weights": "upl_1",
        "classes": ["cat", "dog"],
        "alias": "production",
    }


def test_freeze_sends_the_three_fractions(service, run):
    version = {
        "id": "dsv_1",
        "name": "digits",
        "number": 2,
        "classes": ["0", "1"],
        "sample_count": 10,
        "counts": {"train": {"0": 4, "1": 4}, "validation": {}, "test": {"0": 1, "1": 1}},
    }
    service.on("POST /v1/datasets", answer(version, 201))
    done = run("datasets", "freeze", "digits", "-u", "upl_1", "--split", "0.8,0.2", "--seed", 7)
    assert done.stdout == "digits@2  8 train, 2 test, 2 classes\n"
    assert sent(service, "POST /v1/datasets") == {
        "name": "digits",
        "input": {"upload": "upl_1"},
        "fractions": {"train": 0.8, "validation": 0.0, "test": 0.2},
        "seed": 7,
    }
    assert run("datasets", "freeze", "d", "-u", "u", "--split", "0.9,0.2").exit_code == Exit.USAGE


def test_refusal_is_a_sentence_with_its_faults_and_exit_code_5(service, run):
    faults = [{"line": line, "detail": "no key"} for line in range(2, 14)]
    service.on(
        "POST /v1/jobs",
        problem(422, "manifest_invalid", "40 lines are bad", errors=faults, errors_total=40),
    )
    done = run("submit", "--manifest", "s3://b/m.csv", "-m", "digits")
    assert done.exit_code == Exit.REFUSED
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 40 lines are bad [manifest_invalid]"
    assert lines[1] == "  line 2: no key"
    assert lines[-1] == "  … and 30 more"


def test_wait_for_a_quota_is_told_on_stderr_and_an_outage_that_ends_is_not(service, run):
    full = "this tenant has 2 open jobs"
    service.on(
        "POST /v1/jobs",
        problem(503, "database_unavailable", "try again", retry_after=0),
        problem(429, "too_many_jobs", full, retry_after=0),
        answer(job("validating"), 202),
    )
    done = run("submit", "s3://b/p", "-m", "digits", "--json")
    assert json.loads(done.stdout)["id"] == "job_1"
    assert done.stderr == f"waiting 0.0 s: {full} [too_many_jobs]\n"


def test_absent_service_is_exit_code_4_without_a_traceback(service, run):
    service.on("GET /v1/jobs", httpx2.ConnectError("refused"))
    done = run("jobs")
    assert done.exit_code == Exit.UNREACHABLE
    assert done.stderr.startswith(f"error: no Darkroom at {URL}: start one with `darkroom up`")
    assert "Traceback" not in done.output


def test_fault_of_the_command_itself_is_a_sentence_too(service, run):
    service.on("GET /v1/jobs", answer({"data": [{"wrong": 1}], "has_more": False}))
    done = run("jobs")
    assert done.exit_code == Exit.FAULT
    assert "[fault_of_the_command]" in done.stderr


def test_lists_print_json_for_machines(service, run):
    service.on("GET /v1/uploads", page([UPLOAD]))
    assert json.loads(run("uploads", "list", "--json").stdout) == [UPLOAD]
    table = run("uploads", "list").stdout.splitlines()
    assert table[1].split()[:6] == ["upl_1", "photos.zip", "archive", "ready", "1.5", "MB"]


def test_key_is_shown_once_on_stdout(service, run):
    key = {"id": "key_1", "name": "ci", "scopes": ["jobs:read"], "text": "dk_secret"}
    service.on("POST /v1/keys", answer(key, 201))
    done = run("keys", "create", "ci", "--scope", "jobs:read", "--days", 3)
    assert done.stdout == "dk_secret\n"
    assert sent(service, "POST /v1/keys")["expires_at"]


def test_choice_that_there_is_none_of_is_told_in_a_plain_sentence(run):
    done = run("models", "promote", "pets@2", "--metric", "bogus")
    assert done.exit_code == Exit.USAGE
    assert "'--metric': 'bogus' is not one of 'accuracy'" in " ".join(done.stderr.split())


def test_key_that_ends_soon_is_listed_with_its_hour(service, run):
    soon = datetime.now(UTC) + timedelta(hours=2)
    key = {"id": "key_1", "name": "ci", "scopes": ["jobs:read"], "created_at": "2026-01-01T00:00Z"}
    late = {**key, "id": "key_2", "expires_at": "2999-12-24T18:00:00+00:00"}
    service.on("GET /v1/keys", page([{**key, "expires_at": soon.isoformat()}, late]))
    first, second = run("keys", "list").stdout.splitlines()[1:]
    assert first.endswith(f"until {soon:%Y-%m-%d %H:%M} UTC")
    assert second.endswith("until 2999-12-24")


def test_scopes_of_a_key_that_ends_soon_are_whole_in_80_columns(service, run, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("app.cli.console.stdout", lambda: terminal)
    soon = datetime.now(UTC) + timedelta(hours=2)
    scopes = ["jobs:read", "jobs:write", "models:read"]
    key = {"id": f"key_{'0' * 26}", "name": "nightly-batch", "scopes": scopes}
    service.on("GET /v1/keys", page([{**key, "expires_at": soon.isoformat()}]))
    run("keys", "list")
    words = screen.getvalue().split()
    assert {*scopes, key["id"], key["name"], f"{soon:%H:%M}"} <= set(words)


def test_key_is_rotated_with_its_overlap(service, run):
    key = {"id": "key_2", "name": "ci", "scopes": ["jobs:read"], "text": "dk_secret"}
    service.on("POST /v1/keys/key_1/rotate", answer(key, 201))
    done = run("keys", "rotate", "key_1", "--overlap", "2h")
    assert done.stdout == "dk_secret\n"
    assert "key_1 serves for 2h more" in done.stderr
    assert sent(service, "POST /v1/keys/key_1/rotate") == {"overlap_seconds": 7200}
    assert "key_1 has ended" in run("keys", "rotate", "key_1", "--overlap", "0").stderr
    wrong = run("keys", "rotate", "key_1", "--overlap", "soon")
    assert wrong.exit_code == Exit.USAGE
    assert "no span of time" in wrong.stderr


def test_help_names_every_exit_code(run):
    text = run("--help").stdout
    for code, meaning in EXIT_CODES.items():
        assert f"{code.value}  {meaning}" in text.replace("\n", " ")


def test_starting_the_command_line_loads_neither_the_client_nor_the_database():
    probe = (
        "import sys, app.cli.main; "
        "print(sorted({'httpx2', 'sqlalchemy', 'pydantic', 'torch', 'app.stack.up'} "
        "& set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_control_characters_of_others_never_reach_the_terminal(service, run):
    evil = "a\x1b[2J\x9b31mb"
    row = {
        "ordinal": 0,
        "custom_id": evil,
        "source": "s",
        "state": "succeeded",
        "prediction": [{"class": evil, "score": 0.5}],
        "error": None,
        "label": evil,
        "metadata": None,
    }
    service.on("GET /v1/jobs/job_1/results", page([row]))
    service.on("GET /v1/jobs/job_1", answer(job(metadata={"note": evil})))
    service.on("GET /v1/jobs/job_1/artifacts", page([]))
    service.on("GET /v1/jobs", problem(422, "invalid_input", evil, errors=[{"detail": evil}]))
    for words in (("results", "job_1"), ("job", "job_1"), ("jobs",)):
        done = run(*words)
        assert "a\ufffd[2J\ufffd31mb" in done.output, done.output
        assert "\x1b" not in done.output
        assert "\x9b" not in done.output


def test_export_into_a_folder_that_is_not_there_is_refused_before_the_work(service, run, tmp_path):
    done = run("export", "job_1", "--output", tmp_path / "none" / "results.csv")
    assert done.exit_code == Exit.USAGE
    assert "there is no folder" in done.stderr


def test_fault_that_the_sentence_tells_already_is_not_told_again(service, run):
    faults = [{"pointer": "/deadline", "detail": "it has passed"}]
    service.on(
        "GET /v1/jobs/job_1",
        problem(422, "deadline_passed", "no: it has passed", errors=faults, errors_total=1),
    )
    assert run("job", "job_1").stderr.count("it has passed") == 1


def test_removals_answer_machines_too(service, run):
    service.on("DELETE /v1/webhooks/whk_1", answer({}, 204))
    service.on("DELETE /v1/keys/key_1", answer({}, 204))
    assert json.loads(run("webhooks", "remove", "whk_1", "--json").stdout)["removed"] is True
    assert json.loads(run("keys", "revoke", "key_1", "--json").stdout)["revoked"] is True


def test_module_runs_as_the_command_does():
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", [[], ["up"]])
def test_help_wraps_paragraphs_at_the_width_of_the_terminal_alone(run, command):
    lines = [line.strip() for line in run(*command, "--help").stdout.splitlines()]
    broken_by_the_source = {"`darkroom up`", "S3_ENDPOINT_URL) is", "usage, 8 the folder"}
    assert not broken_by_the_source & set(lines)


def _commands(command, words=()):
    yield command, words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*words, name))


def test_help_cuts_no_name_of_an_option_in_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    longest = []
    for command, words in _commands(get_command(app)):
        names = {name for option in command.params for name in option.opts}
        # Only long ones are in danger, and rendering the help of every command takes seconds.
        if max(map(len, names), default=0) >= 15:
            shown = set(run(*words, "--help").stdout.split())
            assert {name for name in names if name.startswith("-")} <= shown, words
            longest.append(words)
    assert ("tenants", "quota") in longest


@pytest.mark.parametrize(("word", "meant"), [("share", "grant"), ("unshare", "revoke")])
def test_word_that_is_looked_for_first_leads_to_the_command(run, word, meant):
    refused = run("models", word, "pets", "acme")
    assert refused.exit_code == Exit.USAGE
    assert f"darkroom models {meant} MODEL TENANT" in " ".join(refused.stderr.split())
