"""Following events with the client and on the command line: each once, over losses."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from app.cli.connect import Service
from app.cli.main import app
from app.client import ApiError
from app.client.events import follow_events
from tests.unit.fake_service import FakeService, answer, problem

ROAD = "GET /v1/jobs/job_1/events"


def event(number: int, type_: str, **data: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "type": type_,
        "job_id": "job_1",
        "created_at": "2026-11-24T12:00:00+00:00",
        "data": {"state": type_.removeprefix("job."), **data},
    }


def stream(*events: dict[str, Any], cut: str = "", retry: int = 1000) -> httpx2.Response:
    """A stream of the events that ends with ``cut``, the beginning of another one."""
    text = f"retry: {retry}\n\n:\n\n" + "".join(
        f"id: {each['id']}\nevent: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events
    )
    headers = {"Content-Type": "text/event-stream"}
    return httpx2.Response(200, content=(text + cut).encode(), headers=headers)


def test_stream_that_ended_goes_on_after_the_last_event(service: FakeService) -> None:
    service.on(
        ROAD,
        stream(event(1, "job.queued"), retry=3000),
        stream(event(2, "job.running"), cut="id: 3\nevent: job.succeeded\ndata: {"),
        stream(event(3, "job.succeeded")),
    )
    seen = list(service.client().jobs.events("job_1"))
    assert [(each.id, each.type, each.is_last) for each in seen] == [
        ("1", "job.queued", False),
        ("2", "job.running", False),
        ("3", "job.succeeded", True),
    ]
    asked = service.asked(ROAD)
    assert [each.headers["Last-Event-ID"] for each in asked] == ["0", "1", "2"]
    assert {each.headers["Accept"] for each in asked} == {"text/event-stream"}
    assert service.pauses == [3.0, 1.0]


def test_service_that_restarts_is_waited_for(service: FakeService) -> None:
    service.on(
        ROAD,
        stream(event(1, "job.queued")),
        httpx2.ReadError("gone"),
        problem(503, "database_unavailable", "later"),
        stream(event(2, "job.cancelled")),
    )
    assert [each.id for each in service.client().jobs.events("job_1")] == ["1", "2"]


def test_service_that_stays_away_is_told(service: FakeService) -> None:
    service.on(ROAD, stream(event(1, "job.queued")), httpx2.ReadError("gone"))
    moments = iter(range(0, 100_000, 100))
    client = service.client()
    with pytest.raises(ApiError) as lost:
        list(follow_events(client.transport, "job_1", after=0, now=lambda: next(moments)))
    assert lost.value.code == "unreachable"


def test_refusal_is_told_at_once(service: FakeService) -> None:
    service.on(ROAD, problem(404, "job_not_found", "no job job_1"))
    with pytest.raises(ApiError) as refused:
        list(service.client().jobs.events("job_1"))
    assert refused.value.code == "job_not_found"
    assert service.pauses == []


def test_ended_job_without_further_events_ends_the_iteration(service: FakeService) -> None:
    service.on(ROAD, httpx2.Response(204))
    assert list(service.client().jobs.events("job_1", after=7)) == []
    assert service.asked(ROAD)[0].headers["Last-Event-ID"] == "7"


def test_command_shows_what_there_is_a_line_each(service: FakeService) -> None:
    counts = {"total": 2000, "done": 1500, "failed": 3}
    page = {
        "data": [
            event(1, "job.running"),
            event(2, "job.progress", counts=counts),
            event(3, "job.failed", error_code="too_many_failures"),
        ],
        "has_more": False,
        "last_id": "3",
    }
    service.on(ROAD, answer(page))
    done = CliRunner().invoke(app, ["events", "job_1"], obj=Service(http=service.transport))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "job.progress" in lines[1]
    assert "1,500/2,000  3 failed" in lines[1]
    assert lines[2].endswith("job.failed                [too_many_failures]")
    assert service.asked(ROAD)[0].headers["Accept"] == "application/json"


def test_command_follows_and_prints_json_lines(service: FakeService) -> None:
    service.on(ROAD, stream(event(1, "job.running"), event(2, "job.succeeded")))
    done = CliRunner().invoke(
        app, ["events", "job_1", "--follow", "--json"], obj=Service(http=service.transport)
    )
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["1", "2"]
