"""Controlling jobs through the API on a real database; no worker runs."""

from datetime import UTC, datetime, timedelta

import pytest

from app.tenants.scopes import Scope
from tests.api_client import Api, import_body, make_key
from tests.factories import add_version
from tests.jobs import chunk_ids, finish, look_at_job
from tests.plans import run_plan
from tests.retries import predict_chunks


@pytest.fixture
def body(database, objects, tenant_id, folder):
    """A job of two images."""
    with database.tenant(tenant_id) as session:
        model = add_version(session, tenant_id).id
    items = [{"key": f"s3://plans/{folder}{n}.png", "custom_id": f"c{n}"} for n in range(2)]
    return {"kind": "predict", "model": model, "input": {"items": items}}


@pytest.fixture
def job(api, body):
    answer = api("POST", "/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json


@pytest.fixture
def ended(database, objects, small, tenant_id, job):
    """The same, ended: c0 succeeded, c1 failed."""
    run_plan(database, objects, small, tenant_id, job["id"])
    (chunk,) = predict_chunks(database, job["id"])
    finish(database, tenant_id, chunk, 1)
    return job


def test_limits_are_kept_and_shown(api, body):
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    budget = {"items": 3, "fraction": 0.5}
    shown = api(
        "POST",
        "/v1/jobs",
        json={**body, "deadline": later.isoformat(), "max_failed": budget, "priority": 3},
    ).json
    assert datetime.fromisoformat(shown["deadline_at"]) == later
    assert (shown["max_failed"], shown["priority"]) == (budget, 3)
    assert (shown["retry_of"], shown["stop_reason"], shown["paused_at"]) == (None, None, None)
    plain = api("POST", "/v1/jobs", json=body).json
    assert (plain["deadline_at"], plain["max_failed"]) == (None, None)


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"deadline": "2020-01-01T00:00:00Z"}, "deadline_passed", "/deadline"),
        ({"deadline": "2126-01-01T00:00:00"}, "request_invalid", "/deadline"),
        ({"deadline": 1234567890}, "request_invalid", "/deadline"),
        ({"max_failed": {"items": -1}}, "request_invalid", "/max_failed/items"),
        ({"max_failed": {"fraction": 1.5}}, "request_invalid", "/max_failed/fraction"),
        ({"max_failed": 3}, "request_invalid", "/max_failed"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_where_they_stand(api, body, fields, code, pointer):
    answer = api("POST", "/v1/jobs", json={**body, **fields})
    assert (answer.status_code, answer.json["code"]) == (422, code)
    assert answer.json["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("kind", ["import", "export"])
def test_every_kind_of_job_takes_a_priority_and_a_deadline(api, job, kind):
    asked = import_body() if kind == "import" else {"kind": "export", "input": {"job": job["id"]}}
    shown = api(
        "POST", "/v1/jobs", json={**asked, "priority": 5, "deadline": "2126-01-01T00:00:00Z"}
    ).json
    assert (shown["priority"], shown["deadline_at"]) == (5, "2126-01-01T00:00:00Z")


def test_job_is_paused_and_resumed_by_its_links(api, job):
    paused = api("POST", job["links"]["pause"])
    assert (paused.status_code, paused.json["state"]) == (202, "paused")
    assert paused.headers["Location"] == job["links"]["self"]
    assert paused.json["paused_at"] is not None
    assert api("GET", "/v1/jobs?state=paused").json["data"] == [paused.json]
    resumed = api("POST", job["links"]["resume"])
    assert (resumed.status_code, resumed.json["state"]) == (202, "validating")


def test_job_that_was_told_to_stop_is_neither_paused_nor_resumed(api, job):
    assert api("POST", job["links"]["cancel"]).json["stop_reason"] == "cancel"
    for verb in ("pause", "resume"):
        answer = api("POST", job["links"][verb])
        assert (answer.status_code, answer.json["code"]) == (409, "job_cancelling")


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_control_needs_the_right_to_write_jobs(app, database, settings, tenant_id, job, verb):
    reader = Api(app, make_key(database, settings, tenant_id, Scope.JOBS_READ))
    answer = reader("POST", job["links"][verb])
    assert (answer.status_code, answer.json["code"]) == (403, "scope_missing")


def test_retry_without_a_body_is_a_new_job_over_all_that_did_not_succeed(api, ended):
    answer = api("POST", ended["links"]["retry"])
    assert answer.status_code == 202, answer.text
    new = answer.json
    assert answer.headers["Location"] == f"/v1/jobs/{new['id']}" != ended["links"]["self"]
    assert (new["retry_of"], new["state"]) == (ended["id"], "validating")
    assert new["input"] == {"retry_of": ended["id"], "which": "all"}
    assert (new["model_version"], new["options"]) == (ended["model_version"], ended["options"])


def test_retry_takes_what_differs(api, ended):
    asked = {
        "which": "failed",
        "options": {"top_k": 1},
        "priority": 9,
        "deadline": "2126-01-01T00:00:00Z",
        "max_failed": {"items": 0},
        "metadata": {"again": True},
    }
    new = api("POST", ended["links"]["retry"], json=asked).json
    assert new["input"]["which"] == "failed"
    assert new["options"] == {**ended["options"], "top_k": 1}
    assert (new["priority"], new["metadata"]) == (9, {"again": True})
    assert (new["deadline_at"], new["max_failed"]["items"]) == ("2126-01-01T00:00:00Z", 0)


def test_retry_by_the_same_key_is_one_job(api, ended):
    key = {"Idempotency-Key": "once"}
    first = api("POST", ended["links"]["retry"], headers=key)
    again = api("POST", ended["links"]["retry"], headers=key)
    assert first.json == again.json
    assert again.headers["Idempotency-Replayed"] == "true"
    other = api("POST", ended["links"]["retry"], json={"which": "failed"}, headers=key)
    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")


def test_retry_that_makes_no_sense_is_refused(api, job, database, tenant_id):
    def refusal(path, **words):
        answer = api("POST", path, **words)
        return answer.status_code, answer.json["code"]

    assert refusal(job["links"]["retry"]) == (409, "job_not_ended")
    imported = api("POST", "/v1/jobs", json=import_body()).json
    assert refusal(imported["links"]["retry"]) == (409, "not_retryable")
    asked = {"which": "succeeded"}
    assert refusal(job["links"]["retry"], json=asked) == (422, "request_invalid")
    # Only an absent body stands for the defaults: text is no retry.
    assert refusal(job["links"]["retry"], data=b"which=failed")[0] == 415
    assert refusal("/v1/jobs/job_01k8zj5w3v9q4t6y8b0d2f4h6k/retry") == (404, "job_not_found")
    assert len(chunk_ids(database, job["id"])) == 1
    assert look_at_job(database, tenant_id, job["id"]).state == "validating"


def test_other_addresses_still_need_their_body(api):
    answer = api("POST", "/v1/jobs")
    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_media_type")


def test_export_may_include_retries(api, ended):
    asked = {
        "kind": "export",
        "input": {"job": ended["id"]},
        "options": {"include_retries": True},
    }
    assert api("POST", "/v1/jobs", json=asked).json["options"]["include_retries"] is True
