"""What every answer carries; the routes are read from the OpenAPI document, so none is left."""

from __future__ import annotations

import re

import pytest

from tests.api_client import Api
from tests.security.calls import OPEN, Route, routes

ROUTES = list(routes())
BY_NAME = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)


def assert_safe(answer) -> None:
    headers = answer.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "script" not in policy
    assert not [name for name, _ in headers if name.startswith("Access-Control")]
    assert "Set-Cookie" not in headers
    assert headers["Cache-Control"] in ("no-store", "no-cache", "private, no-cache")
    assert "Strict-Transport-Security" not in headers
    assert headers["X-Request-Id"].startswith("req_")
    # One of each: a second one would be read by some and not by others.
    assert len(headers) == len({name.lower() for name, _ in headers})


@BY_NAME
def test_answers_and_refusals_of_every_route_are_safe_to_show(app, world, route: Route):
    missing = {
        name: f"{value[:4]}{'0' * 26}" if "_id" in name else "none"
        for name, value in world.ids.items()
        if isinstance(value, str)
    }
    stranger = Api(app, "none")
    for api, ids in ((stranger, world.ids), (world.api, {**missing, "number": 9})):
        assert_safe(route.call(api, ids))
    if route.method == "get":
        answer = route.call(world.api, world.ids)
        assert answer.status_code in (200, 403, 204)
        assert_safe(answer)


def test_addresses_and_methods_that_are_none_are_answered_safely(app):
    client = app.test_client()
    for method, path in (
        ("GET", "/nowhere"),
        ("GET", "/<script>alert(1)</script>"),
        ("DELETE", "/v1/jobs"),
        ("OPTIONS", "/"),
        ("TRACE", "/v1/docs"),
        ("GET", "/v1/docs/nothing"),
    ):
        answer = client.open(path, method=method)
        assert answer.status_code in (404, 405)
        assert answer.content_type == "application/problem+json"
        assert_safe(answer)


def test_stream_of_events_is_safe_to_show(world):
    path = f"/v1/jobs/{world.ids['job_id']}/events"
    answer = world.api("GET", path, headers={"Accept": "text/event-stream"})
    assert answer.content_type.startswith("text/event-stream")
    assert_safe(answer)
    answer.close()


def test_failure_of_ours_is_answered_safely(app, world, monkeypatch):
    monkeypatch.setattr("app.api.jobs.page_jobs", None)
    answer = world.api("GET", "/v1/jobs")
    assert answer.status_code == 500
    assert_safe(answer)


def test_page_of_documentation_holds_no_script_and_no_style_of_its_own(app):
    page = app.test_client().get("/v1/docs").text
    inline = r"<script|\son[a-z]+=|javascript:|<style|\sstyle=|<iframe|<form"
    assert not re.search(inline, page, re.IGNORECASE)


def test_https_is_remembered_where_the_request_came_by_it(app):
    for scheme, found in (("https", "max-age=31536000"), ("http", None)):
        answer = app.test_client().get("/livez", base_url=f"{scheme}://darkroom.example.com")
        assert answer.headers.get("Strict-Transport-Security") == found


def test_no_route_shows_bytes_of_a_user_but_as_a_file_to_save(world):
    """Images go in and never come out: what an answer may hold is JSON, or an artifact to save."""
    free = {
        "download_artifact",
        "download_linked",
        "export_weights",
        "get_docs",
        "get_docs_style",
        "get_metrics",
        "list_events",
    }
    from tests.api_client import offline_document

    for operations in offline_document()["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                kinds = set(answer.get("content", {})) - {"application/json"}
                assert not kinds or operation["operationId"] in free, (status, kinds)
    assert {"get_docs", "get_metrics"} <= OPEN
    answer = world.api("GET", f"/v1/artifacts/{world.ids['artifact_id']}/content")
    assert answer.headers["Content-Disposition"].startswith("attachment")


def test_route_that_streams_may_take_its_time_and_holds_one_of_the_places_for_it(app):
    """A route whose answer is bytes is known as one, so that its client has the time of a file."""
    resources = app.extensions["darkroom.resources"]
    operations = {name: each for one in resources for name, each in one.operations.items()}
    long = {name for name, each in operations.items() if each.is_long}
    assert long == {
        "artifacts.download_artifact",
        "artifacts.download_linked",
        "events.list_events",
        "uploads.send_upload",
        "weights.export_weights",
    }
