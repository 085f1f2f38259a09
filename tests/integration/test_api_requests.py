"""What any request meets before a use case does: keys, schemas, refusals, headers."""

import subprocess
import sys

import pytest

from app.tenants.scopes import Scope
from tests.api_client import Api, import_body, make_key


def test_importing_the_application_loads_no_torch():
    code = "import app.api.app, sys; sys.exit('torch' in sys.modules or 'celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "Bearer dk_nonsense"])
def test_request_without_a_valid_key_is_401_and_says_how_to_send_one(app, header):
    headers = {} if header is None else {"Authorization": header}
    answer = app.test_client().get("/v1/jobs", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json["code"] in ("key_missing", "key_malformed")


def test_key_without_the_scope_is_403_and_says_which_is_missing(app, database, settings, tenant_id):
    reader = Api(app, make_key(database, settings, tenant_id, Scope.JOBS_READ))
    assert reader("GET", "/v1/jobs").status_code == 200
    answer = reader("POST", "/v1/jobs", json=import_body())
    assert answer.status_code == 403
    assert "models:write" in answer.json["detail"]
    assert reader("GET", "/v1/keys").status_code == 403


def test_every_refusal_is_a_problem_document(app, api):
    job = f"/v1/jobs/job_{'0' * 26}"
    refusals = [
        (api("GET", "/nowhere"), 404, "not_found"),
        (api("DELETE", "/v1/jobs"), 405, "method_not_allowed"),
        (api("OPTIONS", "/v1/jobs"), 405, "method_not_allowed"),
        (api("POST", "/v1/jobs", data="x"), 415, "unsupported_media_type"),
        (api("GET", job), 404, "job_not_found"),
        (api("GET", "/v1/jobs/%00"), 404, "not_found"),
        (api("GET", "/v1/jobs?limit=0"), 422, "request_invalid"),
        (api("GET", "/v1/jobs?colour=red"), 422, "request_invalid"),
        (api("GET", job + "/results?after=x"), 422, "request_invalid"),
    ]
    for answer, status, code in refusals:
        assert answer.status_code == status
        assert answer.content_type == "application/problem+json"
        assert answer.json["code"] == code
        assert answer.json["status"] == status
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_refusals_say_what_fits_instead_of_a_pattern(api):
    def detail(*call, **more):
        return api(*call, **more).json["detail"]

    assert detail("GET", "/v1/jobs/nojob") == (
        "there is nothing at this address: 'nojob' is no id of the form job_… with 26 letters "
        "and digits"
    )
    assert "'Bad Name' is no name: use 1 to 100 letters" in detail(
        "GET", "/v1/models/Bad%20Name/versions"
    )
    assert "'0' can be no number" in detail("GET", "/v1/models/a/versions/0")
    assert "at /colour: there is no parameter of this name" in detail("GET", "/v1/jobs?colour=red")
    items = {"kind": "predict", "model": "m", "input": {"items": [{"key": "photo.jpg"}]}}
    assert "is not of the form s3://bucket/key" in detail("POST", "/v1/jobs", json=items)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'"{}"', 400, "invalid_json"),
        (b'{"kind": NaN}', 400, "invalid_json"),
        (b'{"kind": 1e999}', 400, "invalid_json"),
        (b'{"kind": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b"\xff{}", 400, "invalid_json"),
        ('{"kind": "predict"}'.encode("utf-16"), 400, "invalid_json"),
        (b'{"kind": "predict", "kind": "export"}', 400, "duplicate_name"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400, "too_deep"),
        (b'{"a":' * 100_000, 400, "too_deep"),
        (b'{"kind": "\\u0000"}', 422, "nul_character"),
        (b'{"kind": "\\ud800"}', 422, "lone_surrogate"),
        (b'{"x": "' + b"a" * 3_000_000 + b'"}', 413, "too_large"),
    ],
)
def test_body_of_more_than_one_meaning_is_refused(api, body, status, code):
    answer = api("POST", "/v1/jobs", data=body, content_type="application/json")
    assert (answer.status_code, answer.json["code"]) == (status, code)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"kind": "dance"}, ""),
        ({"input": {}}, "/input"),
        ({"input": 3}, "/input"),
        ({"input": {"items": [{"key": "s3://b/k"}, {"key": 7}]}}, "/input/items/1/key"),
        ({"input": {"prefix": "http://b/k"}}, "/input/prefix"),
        ({"input": {"prefix": "s3://b/k", "upload": "upl_x"}}, "/input/upload"),
        ({"options": {"top_k": "5"}}, "/options/top_k"),
        ({"options": {"top_k": 0}}, "/options/top_k"),
        ({"colour": "red"}, "/colour"),
        ({"metadata": {"a/b": {}}}, "/metadata/a~1b"),
        ({"priority": 10**30}, "/priority"),
    ],
)
def test_fault_of_a_body_is_told_with_a_pointer_into_it(api, change, pointer):
    body = {"kind": "predict", "model": "m", "input": {"prefix": "s3://bucket/x"}, **change}
    answer = api("POST", "/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert pointer in {fault["pointer"] for fault in answer.json["errors"]}
    assert len({(f["pointer"], f["detail"]) for f in answer.json["errors"]}) == len(
        answer.json["errors"]
    )


def test_every_answer_carries_the_security_headers(app, api):
    for answer in (api("GET", "/v1/jobs"), api("GET", "/nowhere"), api("GET", "/v1/docs")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in answer.headers["Content-Security-Policy"]


def test_unexpected_error_shows_nothing_of_the_inside(app, api, monkeypatch):
    def explode(*_words, **_names):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("app.api.jobs.page_jobs", explode)
    answer = api("GET", "/v1/jobs")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert set(answer.json) == {"type", "title", "status", "detail", "code", "request_id"}


def test_service_starts_without_its_parts_and_readiness_names_what_is_missing(settings):
    dead = settings.model_copy(
        update={
            "database_url": type(settings.database_url)("postgresql://x:y@127.0.0.1:1/z"),
            "s3_endpoint_url": settings.s3_endpoint_url,
        }
    )
    from app.api.app import create_app

    client = create_app(dead).test_client()
    assert client.get("/livez").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json == {"status": "not_ready", "database": "failing", "object_store": "ok"}


def test_root_tells_machines_what_answers_and_leads_browsers_to_the_documentation(app):
    client = app.test_client()
    for accept in (None, "*/*", "application/json", "image/png"):
        answer = client.get("/", headers={"Accept": accept} if accept else None)
        assert (answer.status_code, answer.json["service"]) == (200, "darkroom")
        assert answer.headers["Vary"] == "Accept"
        for word in ("documentation", "openapi"):
            assert client.get(answer.json[word]).status_code == 200
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    led = client.get("/", headers={"Accept": browser})
    assert (led.status_code, led.headers["Location"]) == (302, "/v1/docs")
    assert led.headers["Vary"] == "Accept"


def test_documentation_page_holds_every_operation_and_no_script(app):
    page = app.test_client().get("/v1/docs")
    document = app.test_client().get("/v1/openapi.json").json
    assert document["openapi"] == "3.1.1"
    assert "<script" not in page.text
    assert "style=" not in page.text
    names = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(names) == len(set(names)) >= 30
    for name in names:
        assert f'id="{name}"' in page.text
    again = app.test_client().get("/v1/docs", headers={"If-None-Match": page.headers["ETag"]})
    assert again.status_code == 304
