"""Bodies, queries and names made to harm: each has its named code, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.api_client import import_body
from tests.security.work import recorded_work

LIMIT_SECONDS = 10


def body(**change) -> bytes:
    return json.dumps({**import_body(), **change}).encode()


WRONG = {
    "deep objects": (b'{"a":' * 100_000, 400, "too_deep"),
    "deep arrays": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "too_deep"),
    "33 levels": (b'{"a":' * 33 + b"1" + b"}" * 33, 400, "too_deep"),
    "a name twice": (b'{"kind": "import", "kind": "predict"}', 400, "duplicate_name"),
    "a name twice, written otherwise": (b'{"kind": "a", "k\\u0069nd": "b"}', 400, "duplicate_name"),
    "a name twice, inside": (b'{"a": [{"b": 1, "b": 2}]}', 400, "duplicate_name"),
    "NaN": (body(priority=float("nan")), 400, "invalid_json"),
    "Infinity": (body(priority=float("inf")), 400, "invalid_json"),
    "1e400": (b'{"priority": 1e400}', 400, "invalid_json"),
    "-1e400": (b'{"priority": -1e400}', 400, "invalid_json"),
    "a number of a million digits": (
        b'{"priority": ' + b"9" * 1_000_000 + b"}",
        400,
        "invalid_json",
    ),
    "lone surrogate": (b'{"model": "\\ud800"}', 422, "lone_surrogate"),
    "lone surrogate as a name": (b'{"\\udfff": 1}', 422, "lone_surrogate"),
    "surrogate bytes": (b'{"model": "\xed\xa0\x80"}', 400, "invalid_json"),
    "overlong encoding": (b'{"model": "\xc0\xaf"}', 400, "invalid_json"),
    "byte order mark": (b"\xef\xbb\xbf" + body(), 400, "invalid_json"),
    "UTF-16": (body().decode().encode("utf-16"), 400, "invalid_json"),
    "UTF-32": (body().decode().encode("utf-32-le"), 400, "invalid_json"),
    "array": (b"[" + body() + b"]", 400, "invalid_json"),
    "array of a million": (b"[" + b"0," * 1_000_000 + b"0]", 400, "invalid_json"),
    "text": (b'"kind"', 400, "invalid_json"),
    "null": (b"null", 400, "invalid_json"),
    "two bodies": (body() + body(), 400, "invalid_json"),
    "comment": (b"/**/" + body(), 400, "invalid_json"),
    "NUL in a text": (b'{"model": "a\\u0000b"}', 422, "nul_character"),
    "huge integer": (body(priority=2**200), 422, "request_invalid"),
    "float where an integer is": (body(priority=1.0), 422, "request_invalid"),
    "text where an integer is": (body(priority="1"), 422, "request_invalid"),
    "truth where an integer is": (body(priority=True), 422, "request_invalid"),
    "digits of other scripts": (body(model="\u0661\u0662"), 422, "request_invalid"),
    "letters that look alike": (body(model="\u0430dmin"), 422, "request_invalid"),
    "line end after a name": (body(model="digits\n"), 422, "request_invalid"),
    "unknown field": (body(tenant_id="ten_x"), 422, "request_invalid"),
    "prototype": (body(__proto__={"admin": True}), 422, "request_invalid"),
    "50,000 unknown fields": (
        json.dumps({f"f{number}": 1 for number in range(50_000)}).encode(),
        422,
        "request_invalid",
    ),
    "64 KB of metadata": (body(metadata={"a": "b" * 65536}), 422, "request_invalid"),
    "3 MB": (body(metadata={"a": "b" * 3_000_000}), 413, "too_large"),
}


@pytest.mark.parametrize("case", WRONG)
def test_body_that_is_wrong_has_its_code_soon_and_asks_the_database_nothing(app, world, case):
    sent, status, code = WRONG[case]
    began = time.monotonic()
    with recorded_work(app) as work:
        answer = world.api("POST", "/v1/jobs", data=sent, content_type="application/json")
    assert (answer.status_code, answer.json["code"], work) == (status, code, [])
    assert time.monotonic() - began < LIMIT_SECONDS
    # A refusal is no amplifier.
    assert len(answer.data) < 50_000


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "text/json",
        "",
    ],
)
def test_body_of_another_kind_is_not_read_as_json(world, kind):
    answer = world.api("POST", "/v1/jobs", data=body(), content_type=kind)
    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=1001",
        f"limit={10**30}",
        "limit=1e3",
        "limit=1.5",
        "limit=0x10",
        "limit=NaN",
        "limit=",
        "limit=%D9%A1",
        "after=nonsense",
        "after=job_' OR 1=1 --",
        "after=job_" + "i" * 26,
        "after=../../etc/passwd",
        "after=%00",
        "after=upl_" + "0" * 26,
        "state=flying",
        "tenant_id=ten_x",
        "limit[]=1",
    ],
)
def test_query_that_is_wrong_is_refused(app, world, query):
    with recorded_work(app) as work:
        answer = world.api("GET", f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json["code"], work) == (422, "request_invalid", [])


@pytest.mark.parametrize(
    "cursor",
    ["o.-1", "o.1e3", "s.1", "s.1.2.3", "x.1", "o." + "9" * 19, "o.1;", "o.1\n", "o.\u0661"],
)
def test_forged_cursor_is_refused(world, cursor):
    path = f"/v1/jobs/{world.ids['predict_job_id']}/results"
    answer = world.api("GET", path, query_string={"after": cursor})
    assert (answer.status_code, answer.json["code"]) == (422, "request_invalid")


@pytest.mark.parametrize("cursor", ["o.0", "o." + "9" * 18, "s.999999999999999999.0"])
def test_cursor_to_a_place_that_is_none_is_an_empty_page_and_no_fault(world, cursor):
    path = f"/v1/jobs/{world.ids['predict_job_id']}/results"
    answer = world.api("GET", path, query_string={"after": cursor})
    assert answer.status_code in (200, 422)
    assert answer.status_code == 422 or answer.json["data"] == []


CONTROL = ["a\r\nSet-Cookie: x=y", "a\nb", "a\rb", "a\x00b", "a\x1b[31mb", "a\x7fb"]


@pytest.mark.parametrize("name", CONTROL)
def test_control_characters_in_names_are_refused(world, name):
    answers = [
        world.api("POST", "/v1/uploads", query_string={"filename": name}, data=b"x"),
        world.api("POST", "/v1/uploads/multipart", json={"filename": name, "size_bytes": 1}),
        world.api("POST", "/v1/jobs", json=import_body(name)),
        world.api("POST", "/v1/keys", json={"name": name, "scopes": ["jobs:read"]}),
        world.api("POST", "/v1/jobs", json=import_body(), headers={"Idempotency-Key": "a b"}),
    ]
    assert {answer.status_code for answer in answers} == {422}


def test_line_ends_in_what_is_kept_never_become_a_header(world):
    metadata = {"a": "b\r\nSet-Cookie: x=y", "c\r\nd": "e"}
    made = world.api("POST", "/v1/jobs", json={**import_body(), "metadata": metadata})
    assert made.status_code == 202
    assert made.json["metadata"] == metadata
    shown = world.api("GET", f"/v1/jobs/{made.json['id']}")
    for answer in (made, shown):
        assert "Set-Cookie" not in answer.headers
        assert not [value for _, value in answer.headers if re.search(r"[\r\n]", value)]


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "1e9", "\u0661"])
def test_wait_that_is_no_time_is_refused(world, wait):
    answer = world.api("GET", f"/v1/jobs/{world.ids['job_id']}", query_string={"wait": wait})
    assert (answer.status_code, answer.json["code"]) == (422, "request_invalid")
