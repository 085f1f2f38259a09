"""Bytes in: streamed uploads, and parts past the service."""

import hashlib
import io
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from app.jobs.tables import Job
from app.uploads.multipart import join_parts
from app.uploads.tables import Upload
from tests.api_client import make_app

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def app(settings, objects):
    return make_app(settings.model_copy(update={"upload_max_bytes": 12 * MIB}), objects)


def stored(objects, settings, upload_id, database, tenant_id):
    with database.tenant(tenant_id) as session:
        key = session.get_one(Upload, upload_id).object_key
    return objects.read(settings.bucket, key)


def test_streamed_archive_is_stored_whole_and_its_ingest_job_submitted(
    api, objects, settings, database, tenant_id
):
    body = os.urandom(9 * MIB)
    answer = api("POST", "/v1/uploads?filename=photos.zip", data=body)
    assert answer.status_code == 202, answer.text
    upload, job = answer.json["upload"], answer.json["job"]
    assert (upload["state"], upload["size_bytes"]) == ("stored", len(body))
    assert upload["sha256"] == hashlib.sha256(body).hexdigest()
    assert (job["kind"], job["input"]) == ("ingest", {"upload": upload["id"]})
    assert answer.headers["Location"] == upload["links"]["job"] == f"/v1/jobs/{job['id']}"
    assert stored(objects, settings, upload["id"], database, tenant_id) == body
    assert api("GET", f"/v1/uploads/{upload['id']}").json == upload
    assert api("GET", "/v1/uploads").json["data"] == [upload]


def test_streamed_weights_are_ready_without_a_job(api):
    answer = api("POST", "/v1/uploads?kind=weights&filename=w.safetensors", data=b"abc")
    assert answer.status_code == 201
    assert answer.json["upload"]["state"] == "ready"
    assert answer.json["job"] is None


def test_upload_larger_than_the_limit_is_refused_before_and_while_it_arrives(api):
    announced = api("POST", "/v1/uploads", data=b"x" * (13 * MIB))
    assert (announced.status_code, announced.json["code"]) == (413, "too_large")
    streamed = api(
        "POST",
        "/v1/uploads",
        input_stream=io.BytesIO(b"x" * (13 * MIB)),
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )
    assert (streamed.status_code, streamed.json["code"]) == (413, "too_large")
    assert [each["state"] for each in api("GET", "/v1/uploads").json["data"]] == ["failed"]


def test_upload_beyond_the_places_is_told_to_come_back_and_one_that_ends_makes_room(api, app):
    places = app.extensions["darkroom"].upload_places
    taken = [places.take() for _ in range(6)]
    try:
        refused = api("POST", "/v1/uploads?kind=weights", data=b"abc")
    finally:
        for _ in taken:
            places.give_back()
    assert all(taken)
    assert (refused.status_code, refused.json["code"]) == (503, "uploads_busy")
    assert refused.headers["Retry-After"] == "5"
    assert api("GET", "/v1/uploads").json["data"] == []
    assert [api("POST", "/v1/uploads?kind=weights", data=b"abc").status_code for _ in range(7)] == [
        201
    ] * 7


def test_empty_upload_and_form_are_refused(api):
    assert api("POST", "/v1/uploads", data=b"").json["code"] == "upload_empty"
    form = api("POST", "/v1/uploads", data={"file": (io.BytesIO(b"x"), "a.zip")})
    assert form.status_code == 415


def test_body_that_ends_early_is_refused_and_leaves_nothing(api, objects, settings, tenant_id):
    answer = api(
        "POST",
        "/v1/uploads",
        input_stream=io.BytesIO(b"x" * 1000),
        environ_overrides={"CONTENT_LENGTH": "2000"},
    )
    assert (answer.status_code, answer.json["code"]) == (400, "body_incomplete")
    assert [each["state"] for each in api("GET", "/v1/uploads").json["data"]] == ["failed"]
    assert list(objects.list(settings.bucket, f"tenants/{tenant_id}/")) == []


class AbortedOnTheWay(io.BytesIO):
    """A body whose upload someone gives up as its last byte is read."""

    def __init__(self, api, body):
        super().__init__(body)
        self.api = api

    def readinto(self, buffer):
        size = super().readinto(buffer)
        if size and self.tell() == len(self.getvalue()):
            upload = self.api("GET", "/v1/uploads").json["data"][0]
            assert self.api("DELETE", f"/v1/uploads/{upload['id']}").status_code == 204
        return size


def test_upload_aborted_while_it_arrives_leaves_nothing(api, objects, settings, tenant_id):
    body = AbortedOnTheWay(api, b"x" * 6 * MIB)
    answer = api("POST", "/v1/uploads", input_stream=body)
    assert (answer.status_code, answer.json["code"]) == (409, "upload_not_receiving")
    assert [each["state"] for each in api("GET", "/v1/uploads").json["data"]] == ["failed"]
    assert list(objects.list(settings.bucket, f"tenants/{tenant_id}/")) == []


def test_parts_joined_for_an_upload_aborted_meanwhile_are_deleted(
    api, objects, settings, tenant_id, monkeypatch
):
    begun = begin(api, 1000).json
    etag = put(begun["parts"][0]["url"], b"x" * 1000)
    path = f"/v1/uploads/{begun['upload']['id']}"

    def join_and_abort(*words):
        join_parts(*words)
        assert api("DELETE", path).status_code == 204

    monkeypatch.setattr("app.api.multipart.join_parts", join_and_abort)
    answer = api("POST", f"{path}/complete", json={"parts": [{"number": 1, "etag": etag}]})
    assert (answer.status_code, answer.json["code"]) == (409, "upload_not_receiving")
    assert list(objects.list(settings.bucket, f"tenants/{tenant_id}/")) == []


def test_upload_repeated_under_its_key_is_answered_from_memory(
    api, objects, settings, database, tenant_id
):
    sent = {"Idempotency-Key": "up"}
    with ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(api, "POST", "/v1/uploads", data=b"z" * 6 * MIB, headers=sent)
            for _ in range(3)
        ]
    done = [each.result() for each in answers]
    assert {each.status_code for each in done} <= {202, 409}
    done = [each for each in done if each.status_code == 202]
    done.append(api("POST", "/v1/uploads", data=b"z" * 6 * MIB, headers=sent))
    assert len({each.json["job"]["id"] for each in done}) == 1
    assert done[-1].headers["Idempotency-Replayed"] == "true"
    with database.tenant(tenant_id) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
    assert len(list(objects.list(settings.bucket, f"tenants/{tenant_id}/"))) == 1
    other = api("POST", "/v1/uploads", data=b"short", headers=sent)
    assert other.json["code"] == "idempotency_key_reused"


def put(link, data):
    request = urllib.request.Request(link, data=data, method="PUT", headers={"Content-Type": ""})
    with urllib.request.urlopen(request) as answer:
        return answer.headers["ETag"]


def begin(api, size, **headers):
    answer = api(
        "POST",
        "/v1/uploads/multipart",
        json={"filename": "big.zip", "size_bytes": size},
        headers=headers,
    )
    assert answer.status_code == 201, answer.text
    return answer


def test_parts_go_past_the_service_and_make_one_object(api, objects, settings, database, tenant_id):
    body = os.urandom(9 * MIB)
    begun = begin(api, len(body), **{"Idempotency-Key": "m"}).json
    again = begin(api, len(body), **{"Idempotency-Key": "m"})
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json["upload"]["id"] == begun["upload"]["id"]
    size = begun["part_bytes"]
    parts = [
        {"number": n, "etag": put(part["url"], body[(n - 1) * size : n * size])}
        for n, part in enumerate(again.json["parts"], 1)
    ]
    path = f"/v1/uploads/{begun['upload']['id']}"
    for wrong in (
        parts[:1],
        parts[::-1],
        [*parts, {"number": 3, "etag": "x"}],
        [parts[0], {"number": 2, "etag": "x"}],
    ):
        answer = api("POST", f"{path}/complete", json={"parts": wrong})
        assert (answer.status_code, answer.json["code"]) == (422, "parts_invalid")
    done = api("POST", f"{path}/complete", json={"parts": parts})
    assert done.status_code == 202, done.text
    assert done.json["upload"]["size_bytes"] == len(body)
    assert stored(objects, settings, begun["upload"]["id"], database, tenant_id) == body
    assert api("POST", f"{path}/complete", json={"parts": parts}).status_code == 409
    assert api("DELETE", path).status_code == 409


def test_completing_again_after_the_store_had_joined_the_parts_goes_on(
    api, objects, settings, database, tenant_id, monkeypatch
):
    """The service died between the object store's answer and its own commit."""
    begun = begin(api, 1000).json
    etag = put(begun["parts"][0]["url"], b"x" * 1000)
    body = {"parts": [{"number": 1, "etag": etag}]}
    path = f"/v1/uploads/{begun['upload']['id']}/complete"

    def die(*_words, **_names):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("app.api.multipart.store_upload", die)
        assert api("POST", path, json=body).status_code == 500
    assert api("POST", path, json=body).status_code == 202


def test_parts_begun_beside_a_twin_under_the_same_key_are_dropped(
    app, api, objects, settings, tenant_id, monkeypatch
):
    sent = {"Idempotency-Key": "twins"}
    store = app.extensions["darkroom"].store
    begin_in_store = store.begin_multipart

    def after_a_faster_twin(*words):
        monkeypatch.setattr(store, "begin_multipart", begin_in_store)
        begin(api, 2000, **sent)
        return begin_in_store(*words)

    monkeypatch.setattr(store, "begin_multipart", after_a_faster_twin)
    body = {"filename": "big.zip", "size_bytes": 1000}
    answer = api("POST", "/v1/uploads/multipart", json=body, headers=sent)
    assert (answer.status_code, answer.json["code"]) == (422, "idempotency_key_reused")
    assert len(list(objects.list_open_multiparts(settings.bucket, f"tenants/{tenant_id}/"))) == 1


def test_abandoned_parts_are_dropped(api, objects, settings, tenant_id):
    begun = begin(api, 1000).json
    put(begun["parts"][0]["url"], b"x" * 1000)
    path = f"/v1/uploads/{begun['upload']['id']}"
    assert api("DELETE", path).status_code == 204
    assert api("GET", path).json["state"] == "failed"
    answer = api("POST", f"{path}/complete", json={"parts": [{"number": 1, "etag": "x"}]})
    assert (answer.status_code, answer.json["code"]) == (409, "upload_not_receiving")
    assert list(objects.list_open_multiparts(settings.bucket, f"tenants/{tenant_id}/")) == []
