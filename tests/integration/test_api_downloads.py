"""Bytes out: downloads of artifacts, ranges, links."""

import hashlib
import urllib.request

import pytest

from app.jobs.artifacts import add_artifact
from app.storage.keys import artifact as artifact_key
from app.storage.streams import ObjectStream
from tests.api_client import import_body


@pytest.fixture
def artifact(api, database, objects, settings, tenant_id):
    job = api("POST", "/v1/jobs", json=import_body()).json
    body = bytes(range(256)) * 4
    key = artifact_key(tenant_id, job["id"], "results.csv")
    objects.put(settings.bucket, key, body)
    with database.tenant(tenant_id) as session:
        row = add_artifact(
            session,
            tenant_id,
            job["id"],
            name="results.csv",
            media_type="text/csv",
            object_key=key,
            size_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )
    return row.id, body


def test_artifact_is_downloaded_whole_with_a_safe_name(api, artifact):
    artifact_id, body = artifact
    shown = api("GET", f"/v1/artifacts/{artifact_id}").json
    answer = api("GET", shown["content"])
    assert (answer.status_code, answer.data) == (200, body)
    assert answer.headers["Content-Disposition"] == "attachment; filename=results.csv"
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["ETag"] == f'"{shown["sha256"]}"'
    assert answer.headers["Content-Type"].startswith("text/csv")
    known = {"If-None-Match": answer.headers["ETag"]}
    assert api("GET", shown["content"], headers=known).status_code == 304
    assert api("GET", f"/v1/jobs/{shown['job_id']}/artifacts").json["data"] == [shown]


def test_head_tells_the_length_and_keeps_no_connection(api, artifact, monkeypatch):
    closed = []
    close = ObjectStream.close

    def note(stream):
        closed.append(stream)
        close(stream)

    monkeypatch.setattr(ObjectStream, "close", note)
    answer = api("HEAD", f"/v1/artifacts/{artifact[0]}/content")
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(artifact[1]))
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("bytes=1000-", (1000, 1024)),
        ("bytes=1000-99999", (1000, 1024)),
        ("bytes=-24", (1000, 1024)),
        ("bytes=-99999", (0, 1024)),
    ],
)
def test_one_range_is_answered_with_206(api, artifact, asked, span):
    artifact_id, body = artifact
    answer = api("GET", f"/v1/artifacts/{artifact_id}/content", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.data == body[slice(*span)]
    assert answer.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/1024"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=x", "bytes=9-3"])
def test_other_ranges_are_ignored(api, artifact, asked):
    artifact_id, body = artifact
    answer = api("GET", f"/v1/artifacts/{artifact_id}/content", headers={"Range": asked})
    assert (answer.status_code, answer.data) == (200, body)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_range_beyond_the_end_is_416(api, artifact, asked):
    answer = api("GET", f"/v1/artifacts/{artifact[0]}/content", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */1024"


def test_range_of_another_file_is_answered_with_the_whole(api, artifact):
    artifact_id, body = artifact
    path = f"/v1/artifacts/{artifact_id}/content"
    same = f'"{hashlib.sha256(body).hexdigest()}"'
    asked = {"Range": "bytes=0-9"}
    assert api("GET", path, headers={**asked, "If-Range": same}).status_code == 206
    assert api("GET", path, headers={**asked, "If-Range": '"other"'}).status_code == 200


def test_link_downloads_without_a_key(app, api, artifact):
    link = api("POST", f"/v1/artifacts/{artifact[0]}/link").json
    answer = app.test_client().get(link["url"])
    assert (answer.status_code, answer.data) == (200, artifact[1])


def test_direct_link_downloads_from_the_store_without_a_key(api, artifact):
    link = api("POST", f"/v1/artifacts/{artifact[0]}/link", json={"direct": True}).json
    with urllib.request.urlopen(link["url"]) as answer:
        assert answer.read() == artifact[1]


def test_artifact_whose_file_is_gone_is_404(api, artifact, objects, settings, tenant_id):
    keys = [each.key for each in objects.list(settings.bucket, f"tenants/{tenant_id}/")]
    objects.delete(settings.bucket, keys)
    answer = api("GET", f"/v1/artifacts/{artifact[0]}/content")
    assert (answer.status_code, answer.json["code"]) == (404, "artifact_gone")
