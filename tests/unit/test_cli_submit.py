"""Submitting by the command line: a prefix or an archive, and what is refused before it is sent."""

import pytest

from app.cli.exits import Exit
from tests.unit.fake_service import UPLOAD, answer, job, page, problem, sent

VERSION = {
    "id": "mdv_1",
    "model": "digits",
    "number": 3,
    "state": "ready",
    "aliases": ["production"],
}


def test_submit_of_a_prefix_prints_the_job_id_alone_on_stdout(service, run):
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    done = run(
        "submit", "s3://b/p", "-m", "digits", "-k", 3, "--include", "*.png", "--metadata", "a=b=c"
    )
    assert (done.exit_code, done.stdout) == (Exit.DONE, "job_1\n")
    assert sent(service, "POST /v1/jobs") == {
        "kind": "predict",
        "model": "digits",
        "input": {"prefix": "s3://b/p", "include": ["*.png"]},
        "options": {"top_k": 3},
        "metadata": {"a": "b=c"},
    }


def test_submit_of_an_archive_uploads_waits_for_the_unpacking_and_submits(service, run, tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    ingest = job("queued", id="job_0", kind="ingest")
    service.on("GET /v1/models/digits/versions", page([VERSION]))
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": ingest}, 202))
    service.on("GET /v1/jobs/job_0", answer({**ingest, "state": "succeeded"}))
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    service.on("GET /v1/jobs/job_1", answer(job()))
    done = run("submit", path, "-m", "digits", "--watch")
    assert done.exit_code == Exit.DONE
    assert done.stdout.startswith("✓ job_1 succeeded: 4 images in 2.0 s, 2 images/s")
    assert sent(service, "POST /v1/jobs")["input"] == {"upload": "upl_1"}


def test_broken_archive_ends_the_submit_with_its_error(service, run, tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    error = {"code": "archive_broken", "detail": "the archive breaks at byte 2"}
    ingest = job("failed", id="job_0", kind="ingest", error=error, counts={"total": 0, "done": 0})
    service.on("GET /v1/models/digits/versions", page([VERSION]))
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": ingest}, 202))
    service.on("GET /v1/jobs/job_0", answer(ingest))
    done = run("submit", path, "-m", "digits")
    assert done.exit_code == Exit.FAILED
    assert "the archive breaks at byte 2 [archive_broken]" in done.stderr
    assert not service.asked("POST /v1/jobs")


@pytest.mark.parametrize(
    ("model", "reply", "told"),
    [
        ("typo", None, "nothing at /v1/models/typo/versions [not_found]"),
        (
            "digits@stagign",
            page([VERSION]),
            "its aliases are @production (version 3) [model_not_found]",
        ),
        (
            "digits",
            page([{**VERSION, "state": "archived"}]),
            "model version 'digits' is archived [model_not_ready]",
        ),
    ],
)
def test_model_that_would_be_refused_is_told_before_the_archive_is_sent(
    service, run, tmp_path, model, reply, told
):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    if reply is not None:
        service.on("GET /v1/models/digits/versions", reply)
    done = run("submit", path, "-m", model)
    assert done.exit_code == Exit.REFUSED
    assert told in done.stderr
    assert not service.asked("POST /v1/uploads")


SHARED = {
    "id": "grt_1",
    "model": "acme/pets",
    "rights": ["run"],
    "aliases": {"production": 3},
    "version_numbers": [3, 2],
}


@pytest.mark.parametrize(
    ("model", "rights", "told"),
    [
        ("acme/dogs", ["run"], "no model 'acme/dogs' is shared with this tenant"),
        ("acme/pets@next", ["run"], "aliases of 'acme/pets' are @production [model_not_found]"),
        ("acme/pets@2", ["evaluate"], "for evaluate, not to run it [run_not_granted]"),
    ],
)
def test_shared_model_that_would_be_refused_is_told_before_the_archive_is_sent(
    service, run, tmp_path, model, rights, told
):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    service.on("GET /v1/shared-models", page([{**SHARED, "rights": rights}]))
    done = run("submit", path, "-m", model)
    assert done.exit_code == Exit.REFUSED
    assert told in " ".join(done.stderr.split())
    assert not service.asked("POST /v1/uploads")


@pytest.mark.parametrize("model", ["acme/pets", "acme/pets@production", "acme/pets@2"])
def test_shared_model_that_may_run_is_submitted(service, run, tmp_path, model):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    service.on("GET /v1/shared-models", page([SHARED]))
    ingest = job("queued", id="job_0", kind="ingest")
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": ingest}, 202))
    service.on("GET /v1/jobs/job_0", answer({**ingest, "state": "succeeded"}))
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    assert run("submit", path, "-m", model).exit_code == Exit.DONE
    assert sent(service, "POST /v1/jobs")["model"] == model


@pytest.mark.parametrize("model", ["mdv_1", "digits"])
def test_model_that_cannot_be_looked_up_is_left_to_the_submit(service, run, tmp_path, model):
    path = tmp_path / "photos.zip"
    path.write_bytes(b"PK")
    service.on("GET /v1/models/digits/versions", problem(403, "scope_missing", "lacks models:read"))
    ingest = job("queued", id="job_0", kind="ingest")
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": ingest}, 202))
    service.on("GET /v1/jobs/job_0", answer({**ingest, "state": "succeeded"}))
    service.on("POST /v1/jobs", answer(job("validating"), 202))
    assert run("submit", path, "-m", model).exit_code == Exit.DONE


@pytest.mark.parametrize(
    "words",
    [
        ["photos.zip", "--deadline", "2020-01-01T00:00:00+00:00"],
        ["photos.zip", "--activation", "softmx"],
        ["photos.zip", "--top-k", "1001"],
        ["net.safetensors"],
    ],
)
def test_what_can_be_seen_to_be_wrong_here_is_a_usage_error_and_nothing_is_sent(
    service, run, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    for name in ("photos.zip", "net.safetensors"):
        (tmp_path / name).write_bytes(b"PK")
    done = run("submit", "-m", "digits", *words)
    assert done.exit_code == Exit.USAGE, done.output
    assert service.requests == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["s3://b/p", "--upload", "upl_1"],
        ["--upload", "upl_1", "--split", "test"],
        ["--upload", "upl_1", "--include", "*"],
        ["no-such-file.zip"],
        ["s3://b/p", "--metadata", "novalue"],
    ],
)
def test_contradicting_options_of_submit_are_usage_errors(service, run, words):
    assert run("submit", "-m", "digits", *words).exit_code == Exit.USAGE
    assert service.requests == []
