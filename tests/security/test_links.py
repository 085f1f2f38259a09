"""Links: what opens without a key opens one file, for a while, by reading it, and nothing else."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from dataclasses import replace
from unittest.mock import ANY
from urllib.parse import parse_qs, urlsplit

import pytest

from app.api import links
from app.errors import SettingsError
from app.ids import new_id
from app.settings import load_settings
from app.tenants.keys import revoke_key
from app.tenants.scopes import Principal, Scope
from tests.api_client import Api, make_app, make_key
from tests.security.work import recorded_work
from tests.world import CONTENT, build_world


@pytest.fixture(scope="module")
def other(app, settings, database, objects):
    return build_world(app, settings, database, objects)


def link_of(world, **words):
    answer = world.api("POST", f"/v1/artifacts/{world.ids['artifact_id']}/link", **words)
    assert answer.status_code == 200, answer.text
    return answer.json["url"]


def test_link_downloads_its_file_as_a_file_and_no_page(app, world):
    link = link_of(world)
    for method, body in (("GET", CONTENT), ("HEAD", b"")):
        answer = app.test_client().open(link, method=method)
        assert (answer.status_code, answer.data) == (200, body)
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"].startswith("private")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    part = app.test_client().get(link, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.data) == (206, CONTENT[1:4])


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
def test_link_only_reads(app, world, method):
    assert app.test_client().open(link_of(world), method=method).status_code == 405


def test_link_tells_its_reader_nothing_of_who_made_it(world):
    token = parse_qs(urlsplit(link_of(world)).query)["token"][0]
    inside = base64.urlsafe_b64decode(token.rpartition(".")[2])
    for secret in (world.tenant_id, world.api.key, world.api.key.split("_")[1]):
        assert secret not in token
        assert secret.encode() not in inside


def test_forged_moved_and_cut_links_open_nothing_and_ask_the_database_nothing(app, world, other):
    link = link_of(world)
    path, _, token = link.partition("?token=")
    theirs = path.replace(world.ids["artifact_id"], other.ids["artifact_id"])
    nobodys = path.replace(world.ids["artifact_id"], new_id("art"))
    turned = token[:-6] + ("A" if token[-6] != "A" else "B") + token[-5:]
    forged = [
        path,
        f"{path}?token=",
        f"{path}?token=x",
        f"{path}?token={token[:-4]}",
        f"{path}?token={turned}",
        f"{path}?token={token.replace('k1.', 'k2.')}",
        f"{path}?token={world.api.key}",
        f"{path}?token=k1.none.{token.rpartition('.')[2]}",
        f"{path}?token=%00%ff",
        # Another file, of the same tenant or of none, is another link.
        f"{theirs}?token={token}",
        f"{nobodys}?token={token}",
    ]
    for one in forged:
        with recorded_work(app) as work:
            answer = app.test_client().get(one)
        assert (answer.status_code, answer.json["code"], work) == (403, "link_invalid", []), one
        assert answer.json["detail"] == app.test_client().get(path).json["detail"]
    assert app.test_client().get(f"{path}?token={'x' * 401}").status_code == 422
    # A token is no key either.
    answer = app.test_client().get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json["code"]) == (401, "key_malformed")


def test_link_ends(app, world, monkeypatch):
    link = link_of(world)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 899)
    assert app.test_client().get(link).status_code == 200
    monkeypatch.setattr(time, "time", lambda: now + 901)
    answer = app.test_client().get(link)
    assert (answer.status_code, answer.json["code"]) == (403, "link_expired")


def test_link_ends_with_the_key_that_sealed_it(settings, objects, world):
    link = link_of(world)
    fresh = type(settings.sealing_keys)("fresh:" + base64.b64encode(b"y" * 32).decode())
    rotated = make_app(settings.model_copy(update={"sealing_keys": fresh}), objects)
    assert rotated.test_client().get(link).json["code"] == "link_invalid"


def test_link_ends_with_the_key_that_made_it(app, settings, database, world):
    maker = Api(app, make_key(database, settings, world.tenant_id))
    path = f"/v1/artifacts/{world.ids['artifact_id']}/link"
    link = maker("POST", path).json["url"]
    assert app.test_client().get(link).status_code == 200
    key_id = f"key_{maker.key.split('_')[1]}"
    assert world.api("DELETE", f"/v1/keys/{key_id}").status_code == 204
    answer = app.test_client().get(link)
    assert (answer.status_code, answer.json["code"]) == (403, "link_expired")
    # Nor at a process that has never heard of the key.
    assert make_app(settings, app.extensions["darkroom"].store).test_client().get(link).json == {
        **answer.json,
        "request_id": ANY,
    }
    # Links of the tenant's other keys go on.
    assert app.test_client().get(link_of(world)).status_code == 200


def test_link_of_a_dead_key_counts_as_a_failed_try(settings, objects, database, world):
    few = settings.model_copy(update={"max_failed_authentications_per_minute": 2})
    app = make_app(few, objects)
    key = make_key(database, settings, world.tenant_id)
    path = f"/v1/artifacts/{world.ids['artifact_id']}/link"
    link = Api(app, key)("POST", path).json["url"]
    with database.tenant(world.tenant_id) as session:
        revoke_key(session, world.tenant_id, f"key_{key.split('_')[1]}")
    client = app.test_client()
    answers = [client.get(link, environ_base={"REMOTE_ADDR": "192.0.2.77"}) for _ in range(4)]
    assert [answer.status_code for answer in answers][-1] == 429


def test_link_of_a_tenant_does_not_open_a_row_that_another_took_over(app, world, other):
    # What the token says is checked where the key is found; a key of another tenant is none.
    principal = replace(_principal(world), tenant_id=other.tenant_id)
    with app.test_request_context("/"):
        link, _ = links.make_link(principal, world.ids["artifact_id"])
    answer = app.test_client().get(link)
    assert (answer.status_code, answer.json["code"]) == (403, "link_expired")
    # And again where the row is read.
    principal = replace(_principal(other), tenant_id=other.tenant_id)
    with app.test_request_context("/"):
        link, _ = links.make_link(principal, world.ids["artifact_id"])
    answer = app.test_client().get(link)
    assert (answer.status_code, answer.json["code"]) == (404, "artifact_not_found")


def _principal(world):
    return Principal(world.tenant_id, f"key_{world.api.key.split('_')[1]}", frozenset())


def test_link_needs_the_scope_that_a_download_needs(app, settings, database, world):
    reader = Api(app, make_key(database, settings, world.tenant_id, Scope.JOBS_READ))
    answer = reader("POST", f"/v1/artifacts/{world.ids['artifact_id']}/link")
    assert (answer.status_code, answer.json["code"]) == (403, "scope_missing")


def test_links_begin_with_the_public_address_and_with_no_host_that_is_none(
    settings, objects, world
):
    path = f"/v1/artifacts/{world.ids['artifact_id']}/link"
    headers = {"Authorization": f"Bearer {world.api.key}"}
    named = settings.model_copy(update={"public_url": "https://darkroom.example.com/"})
    for given, host, begin in (
        (named, "evil.example", "https://darkroom.example.com/v1/"),
        (settings, "darkroom.local:8080", "http://darkroom.local:8080/v1/"),
        (settings, "a b/../c", "/v1/"),
        (settings, "user@evil.example", "/v1/"),
    ):
        app = make_app(given, objects)
        answer = app.test_client().post(path, headers={**headers, "Host": host})
        assert answer.json["url"].startswith(begin), host


@pytest.mark.parametrize(
    "wrong",
    [
        {"link_seconds": 8 * 24 * 3600},
        {"link_seconds": 0},
        {"public_url": "javascript:alert(1)"},
        {"public_url": "https://user@host"},
        {"public_url": "https://host/?a=b"},
    ],
)
def test_settings_that_would_make_bad_links_are_refused(wrong):
    with pytest.raises(SettingsError):
        load_settings(DATABASE_URL="postgresql://x:y@127.0.0.1:1/z", **wrong)


def fetch(url: str, method: str = "GET", data: bytes | None = None):
    """Status and headers of the object store's answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=data, method=method), timeout=30
        ) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_direct_link_is_for_one_object_and_for_reading(world, other):
    link = link_of(world, json={"direct": True})
    status, headers = fetch(link)
    assert status == 200
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["Content-Type"] == "application/octet-stream"
    for method in ("PUT", "DELETE", "POST", "HEAD"):
        data = b"x" if method in ("PUT", "POST") else None
        assert fetch(link, method, data)[0] in (400, 403, 405)
    theirs = link.replace(world.tenant_id, other.tenant_id).replace(
        world.ids["job_id"], other.ids["job_id"]
    )
    assert theirs != link
    assert fetch(theirs)[0] in (400, 403)
    # What the answer says it is cannot be turned into a page.
    assert fetch(link.replace("attachment", "inline"))[0] in (400, 403)
    assert fetch(link.replace("octet-stream", "xhtml%2Bxml"))[0] in (400, 403)
    assert fetch(link.replace("X-Amz-Expires=900", "X-Amz-Expires=604800"))[0] in (400, 403)
    # All this while the link itself was good.
    assert fetch(link)[0] == 200


def test_links_to_parts_are_for_one_part_of_one_upload(world, other):
    begun = world.api(
        "POST", "/v1/uploads/multipart", json={"filename": "a.zip", "size_bytes": 17 * 1024 * 1024}
    ).json
    first, second = (part["url"] for part in begun["parts"][:2])
    assert begun["upload"]["id"] in first
    assert fetch(first, "PUT", b"x" * 1024)[0] == 200
    for url, method in (
        (first, "GET"),
        (first, "DELETE"),
        (first.replace("partNumber=1", "partNumber=2"), "PUT"),
        (first.replace("partNumber=1", "partNumber=0"), "PUT"),
        (first.replace("partNumber=1", "partNumber=10001"), "PUT"),
        (first.replace(world.tenant_id, other.tenant_id), "PUT"),
        (first.partition("&uploadId=")[0], "PUT"),
        (second.replace(begun["upload"]["id"], world.ids["upload_id"]), "PUT"),
    ):
        assert fetch(url, method, b"x" if method == "PUT" else None)[0] in (
            400,
            403,
            404,
            405,
            501,
        ), url


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([{"number": 0, "etag": "a"}], "request_invalid"),
        ([{"number": -1, "etag": "a"}], "request_invalid"),
        ([{"number": 10_001, "etag": "a"}], "request_invalid"),
        ([{"number": 1.0, "etag": "a"}], "request_invalid"),
        ([{"number": 1, "etag": "a\r\nX: y"}], "request_invalid"),
        ([], "request_invalid"),
        ([{"number": 1, "etag": "a"}] * 10_001, "request_invalid"),
    ],
)
def test_parts_that_cannot_be_are_refused(world, parts, code):
    path = f"/v1/uploads/{world.ids['upload_id']}/complete"
    answer = world.api("POST", path, json={"parts": parts})
    assert (answer.status_code, answer.json["code"]) == (422, code)


def test_upload_with_more_bytes_than_announced_is_refused_at_its_completion(world):
    begun = world.api(
        "POST", "/v1/uploads/multipart", json={"kind": "weights", "size_bytes": 3}
    ).json
    request = urllib.request.Request(begun["parts"][0]["url"], data=b"x" * 1000, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        etag = answer.headers["ETag"]
    answer = world.api(
        "POST",
        f"/v1/uploads/{begun['upload']['id']}/complete",
        json={"parts": [{"number": 1, "etag": etag}]},
    )
    assert answer.status_code in (409, 413, 422), answer.text
    assert world.api("GET", f"/v1/uploads/{begun['upload']['id']}").json["state"] != "stored"
