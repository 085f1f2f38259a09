"""Submitting, polling, waiting, paging and repeating, on a real database."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from app.jobs.tables import IdempotencyKey, Job
from tests.api_client import Api, import_body, make_app, make_key


@pytest.fixture(scope="module")
def app(settings, objects):
    return make_app(settings.model_copy(update={"wait_slots": 1}), objects)


@pytest.fixture
def job(api):
    answer = api("POST", "/v1/jobs", json=import_body())
    assert answer.status_code == 202, answer.text
    return answer.json


def count_jobs(database, tenant_id):
    with database.tenant(tenant_id) as session:
        return session.scalar(
            select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id)
        )


def change(database, tenant_id, job_id):
    """Write what a worker's heartbeat would."""
    with database.tenant(tenant_id) as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(progress={"step": 1, "steps": 4, "unit": "epoch"}, updated_at=func.now())
        )


def test_submitted_job_is_accepted_with_its_address_and_when_to_ask(api):
    answer = api("POST", "/v1/jobs", json=import_body())
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"
    assert answer.headers["Retry-After"] == "1"
    assert answer.json["model_version"]["name"] == "squeeze"
    assert answer.json["links"]["self"] == answer.headers["Location"]


def test_import_by_the_models_address_is_the_same_job(api):
    answer = api("POST", "/v1/models/squeeze/versions", json=import_body()["options"])
    assert answer.status_code == 202
    assert answer.json["kind"] == "import"
    version = api("GET", "/v1/models/squeeze/versions/1").json
    assert (version["state"], version["model"], version["aliases"]) == ("pending", "squeeze", [])
    models = api("GET", "/v1/models").json["data"]
    assert [model["name"] for model in models] == ["squeeze"]
    assert api("GET", "/v1/models/squeeze/versions").json["data"] == [version]


def test_alias_of_a_version_that_is_not_ready_is_a_conflict(api, job):
    answer = api("PUT", "/v1/models/squeeze/aliases/blue", json={"version": 1})
    assert (answer.status_code, answer.json["code"]) == (409, "model_not_ready")
    answer = api("PUT", "/v1/models/squeeze/aliases/blue", json={"version": 2})
    assert answer.status_code == 404


def test_poll_without_news_is_304_and_with_news_200(api, job, database, tenant_id):
    first = api("GET", f"/v1/jobs/{job['id']}")
    assert first.status_code == 200
    assert first.json == job
    known = {"If-None-Match": first.headers["ETag"]}
    same = api("GET", f"/v1/jobs/{job['id']}", headers=known)
    assert (same.status_code, same.data) == (304, b"")
    assert same.headers["ETag"] == first.headers["ETag"]
    assert same.headers["Retry-After"] == "1"
    # As a proxy that compresses hands it on.
    weakened = {"If-None-Match": f"W/{first.headers['ETag']}"}
    assert api("GET", f"/v1/jobs/{job['id']}", headers=weakened).status_code == 304
    change(database, tenant_id, job["id"])
    fresh = api("GET", f"/v1/jobs/{job['id']}", headers=known)
    assert fresh.status_code == 200
    assert fresh.json["progress"] == {"fraction": 0.25, "step": 1, "steps": 4, "unit": "epoch"}


def test_long_poll_ends_with_the_change_it_waits_for(api, job, database, tenant_id):
    first = api("GET", f"/v1/jobs/{job['id']}")
    known = {"If-None-Match": first.headers["ETag"]}
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waiting = pool.submit(api, "GET", f"/v1/jobs/{job['id']}?wait=20", headers=known)
        change(database, tenant_id, job["id"])
        answer = waiting.result()
    assert answer.status_code == 200
    assert time.monotonic() - began < 5


def test_long_poll_without_etag_ends_when_the_job_has_ended(api, job, database, tenant_id):
    change(database, tenant_id, job["id"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api, "GET", f"/v1/jobs/{job['id']}?wait=20")
        with database.tenant(tenant_id) as session:
            session.execute(
                update(Job)
                .where(Job.id == job["id"])
                .values(state="succeeded", ended_at=func.now())
            )
        answer = waiting.result()
    assert answer.json["state"] == "succeeded"
    assert "Retry-After" not in answer.headers


def test_long_poll_whose_time_is_up_tells_how_the_job_stands(api, job):
    first = api("GET", f"/v1/jobs/{job['id']}?wait=0.1")
    assert (first.status_code, first.json["state"]) == (200, "queued")
    known = {"If-None-Match": first.headers["ETag"]}
    assert api("GET", f"/v1/jobs/{job['id']}?wait=0.1", headers=known).status_code == 304


def test_client_beyond_the_places_for_waiting_is_answered_at_once(app, api, job):
    with app.extensions["darkroom"].slots.take() as taken:
        assert taken
        began = time.monotonic()
        answer = api("GET", f"/v1/jobs/{job['id']}?wait=20")
    assert time.monotonic() - began < 2
    assert answer.status_code == 200
    assert int(answer.headers["Retry-After"]) >= 2


def test_waiting_client_holds_no_database_connection(app, api, job):
    db = app.extensions["darkroom"].db
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api, "GET", f"/v1/jobs/{job['id']}?wait=1")
        samples = []
        while not waiting.done():
            samples.append(db._engine.pool.checkedout())
            threading.Event().wait(0.02)
    assert samples.count(0) > len(samples) / 2


def test_cancel_is_accepted_and_again_changes_nothing(api, job):
    for _ in range(2):
        answer = api("POST", f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json["state"]) == (202, "cancelling")


def test_pages_hold_every_job_once_newest_first(api):
    made = [api("POST", "/v1/jobs", json=import_body()).json["id"] for _ in range(5)]
    seen, after = [], ""
    while True:
        page = api("GET", f"/v1/jobs?limit=2&kind=import{after}").json
        seen += [each["id"] for each in page["data"]]
        assert page["first_id"] == page["data"][0]["id"]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert seen == sorted(made, reverse=True)
    assert api("GET", "/v1/jobs?state=succeeded").json["data"] == []


def test_job_of_another_tenant_is_not_there(app, api, job, database, settings):
    from app.tenants.keys import create_tenant

    with database.system() as session:
        other = create_tenant(session, f"other-{job['id'][-8:]}").id
    stranger = Api(app, make_key(database, settings, other))
    for path in ("", "/results", "/errors", "/metrics", "/artifacts"):
        foreign = stranger("GET", f"/v1/jobs/{job['id']}{path}")
        missing = stranger("GET", f"/v1/jobs/job_{'0' * 26}{path}")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json["code"] == missing.json["code"]
    assert stranger("POST", f"/v1/jobs/{job['id']}/cancel").status_code == 404


def test_same_key_gives_the_same_answer_and_one_job(api, database, tenant_id):
    sent = {"Idempotency-Key": "once"}
    first = api("POST", "/v1/jobs", json=import_body(), headers=sent)
    again = api("POST", "/v1/jobs", json=import_body(), headers=sent)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (again.status_code, again.json) == (first.status_code, first.json)
    assert again.headers["Location"] == first.headers["Location"]
    assert count_jobs(database, tenant_id) == 1


def test_key_used_for_another_request_is_refused(api, database, tenant_id):
    sent = {"Idempotency-Key": "once"}
    api("POST", "/v1/jobs", json=import_body(), headers=sent)
    other = api("POST", "/v1/jobs", json=import_body("other"), headers=sent)
    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert count_jobs(database, tenant_id) == 1


def test_refused_request_leaves_its_key_free(api):
    sent = {"Idempotency-Key": "again"}
    body = {"kind": "predict", "model": "nothing", "input": {"prefix": "s3://photos/x"}}
    assert api("POST", "/v1/jobs", json=body, headers=sent).status_code == 404
    assert api("POST", "/v1/jobs", json=import_body(), headers=sent).status_code == 202


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
def test_key_that_is_no_word_is_refused(api, key):
    answer = api("POST", "/v1/jobs", json=import_body(), headers={"Idempotency-Key": key})
    assert answer.json["code"] == "idempotency_key_invalid"


def test_second_request_while_the_first_is_at_work_is_told_to_wait(
    api, database, tenant_id, monkeypatch
):
    inside, go_on = threading.Event(), threading.Event()
    from app.jobs.submit import submit_import

    def slow(*words, **names):
        inside.set()
        assert go_on.wait(10)
        return submit_import(*words, **names)

    monkeypatch.setattr("app.api.jobs.submit_import", slow)
    sent = {"Idempotency-Key": "race"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(api, "POST", "/v1/jobs", json=import_body(), headers=sent)
        assert inside.wait(10)
        second = api("POST", "/v1/jobs", json=import_body(), headers=sent)
        go_on.set()
    assert (second.status_code, second.json["code"]) == (409, "idempotency_key_in_flight")
    assert second.headers["Retry-After"] == "1"
    assert first.result().status_code == 202
    assert count_jobs(database, tenant_id) == 1


def test_many_at_once_under_one_key_make_one_job(api, database, tenant_id):
    sent = {"Idempotency-Key": "crowd"}
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(api, "POST", "/v1/jobs", json=import_body(), headers=sent)
            for _ in range(12)
        ]
    statuses = {answer.result().status_code for answer in answers}
    assert statuses <= {202, 409}
    assert count_jobs(database, tenant_id) == 1
    with database.tenant(tenant_id) as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 1


def test_key_is_shown_once_and_its_replay_holds_no_secret(api, app, database, tenant_id):
    sent = {"Idempotency-Key": "key"}
    body = {"name": "reader", "scopes": ["jobs:read"], "expires_at": "2099-01-01T00:00:00Z"}
    made = api("POST", "/v1/keys", json=body, headers=sent)
    assert made.status_code == 201
    again = api("POST", "/v1/keys", json=body, headers=sent)
    assert (again.status_code, again.json["text"]) == (201, None)
    with database.tenant(tenant_id) as session:
        kept = session.scalar(select(IdempotencyKey).where(IdempotencyKey.key == "key"))
        assert made.json["text"].split("_")[2] not in str(kept.body)
    reader = Api(app, made.json["text"])
    assert reader("GET", "/v1/jobs").status_code == 200
    assert api("DELETE", f"/v1/keys/{made.json['id']}").status_code == 204
    assert reader("GET", "/v1/jobs").status_code == 401
    listed = {key["id"]: key for key in api("GET", "/v1/keys").json["data"]}
    assert listed[made.json["id"]]["revoked_at"] is not None
