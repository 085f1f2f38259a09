"""Server-sent events of a job: each once, in order, whatever becomes of the connection."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from flask.testing import FlaskClient
from sqlalchemy import delete

from app.api import events
from app.api.schemas.events import EventTypeWord
from app.db.session import Database
from app.dispatch.stops import end_stopped_jobs
from app.jobs.cancel import cancel_job
from app.jobs.events import EVENT_TYPES, Event
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.api_client import Api, make_app, make_key
from tests.factories import make_tenant
from tests.jobs import finish, make_job


def ask(api: Api, job_id: str, query: str = "", **headers: str) -> Any:
    """The open answer to a request for the job's stream; nothing of it is read yet."""
    client: FlaskClient = api.app.test_client()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get(
        f"/v1/jobs/{job_id}/events{query}",
        headers={"Authorization": f"Bearer {api.key}", **named},
        buffered=False,
    )


def events_in(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come."""
    for piece in pieces:
        lines = [line for line in piece.decode().splitlines() if line and line[0] != ":"]
        fields = dict(line.split(": ", 1) for line in lines)
        if "data" in fields:
            data = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (data["id"], data["type"])
            yield data


def ids_in(response: Any) -> list[str]:
    return [event["id"] for event in events_in(response.response)]


def test_stream_tells_what_was_and_what_comes_and_ends_with_the_job(
    api: Api, database: Database, tenant_id: str
) -> None:
    job_id, chunks = make_job(database, tenant_id, 3, 2)
    finish(database, tenant_id, chunks[0])
    response = ask(api, job_id)
    assert response.status_code == 200
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    stream = events_in(response.response)
    assert [next(stream)["type"] for _ in range(2)] == ["job.running", "job.progress"]
    finish(database, tenant_id, chunks[1])
    rest = list(stream)
    assert [event["type"] for event in rest] == ["job.progress", "job.succeeded"]
    assert rest[-1]["data"] == {
        "state": "succeeded",
        "counts": {
            "total": 5,
            "done": 5,
            "succeeded": 5,
            "failed": 0,
            "skipped": 0,
            "cancelled": 0,
            "expired": 0,
        },
        "progress": None,
        "error_code": None,
    }


def test_stream_that_was_cut_goes_on_after_the_last_event_id(
    api: Api, database: Database, tenant_id: str
) -> None:
    job_id, chunks = make_job(database, tenant_id, *[1] * 6)
    seen: list[str] = []
    for number in range(6):
        finish(database, tenant_id, chunks[number])
        # The address still has its first `after`; the header goes before it.
        last = {"Last_Event_ID": seen[-1]} if seen else {}
        response = ask(api, job_id, "?after=0", **last)
        for event in events_in(response.response):
            seen.append(event["id"])
            if event["data"]["counts"]["done"] == number + 1 and number < 5:
                break
        response.close()
    assert seen == [str(number) for number in range(1, 9)]
    assert ask(api, job_id, Last_Event_ID="8").status_code == 204
    assert ids_in(ask(api, job_id, "?after=6")) == ["7", "8"]


def test_many_events_come_page_by_page(
    api: Api, database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PAGE", 3)
    job_id, chunks = make_job(database, tenant_id, *[1] * 8)
    for number in range(8):
        finish(database, tenant_id, chunks[number])
    assert ids_in(ask(api, job_id)) == [str(number) for number in range(1, 11)]
    page = api("GET", f"/v1/jobs/{job_id}/events?limit=4", headers={"Accept": "application/json"})
    assert [event["id"] for event in page.json["data"]] == ["1", "2", "3", "4"]
    assert page.json["has_more"] is True
    rest = api(
        "GET",
        f"/v1/jobs/{job_id}/events?after={page.json['last_id']}",
        headers={"Accept": "application/json"},
    )
    assert [event["id"] for event in rest.json["data"]] == ["5", "6", "7", "8", "9", "10"]
    assert rest.json["has_more"] is False


def test_stream_over_the_bound_has_what_there_is_and_says_when_to_come_back(
    settings: Settings,
    objects: ObjectStore,
    database: Database,
    tenant_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT_SECONDS", 0.05)
    app = make_app(settings.model_copy(update={"wait_slots": 1}), objects)
    api = Api(app, make_key(database, settings, tenant_id))
    job_id, chunks = make_job(database, tenant_id, 1, 1)
    finish(database, tenant_id, chunks[0])
    waiting = ask(api, job_id).response
    # A comment says that it waits, and so that it has the one place.
    while next(waiting) != b":\n\n":
        continue
    pieces = list(ask(api, job_id).response)
    assert [event["id"] for event in events_in(iter(pieces))] == ["1", "2"]
    assert pieces[-1] == b"retry: 3000\n\n"
    finish(database, tenant_id, chunks[1])
    assert [event["id"] for event in events_in(waiting)] == ["3", "4"]
    with app.extensions["darkroom"].slots.take() as free:
        assert free


def test_silent_stream_sends_comments_and_gives_its_place_back_in_the_end(
    api: Api, database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(events, "_LONGEST_SECONDS", 0.3)
    job_id, _ = make_job(database, tenant_id, 1)
    pieces = list(ask(api, job_id).response)
    assert pieces[0] == b"retry: 1000\n\n"
    assert set(pieces[1:]) == {b":\n\n"}
    assert len(pieces) > 2


def test_no_connection_is_held_while_a_stream_waits(
    settings: Settings, objects: ObjectStore, database: Database, tenant_id: str
) -> None:
    # Four wait and there are two connections: each look needs one for a moment only.
    app = make_app(settings.model_copy(update={"database_pool": 2}), objects)
    api = Api(app, make_key(database, settings, tenant_id))
    job_id, chunks = make_job(database, tenant_id, 1)
    with ThreadPoolExecutor() as threads:
        streams = [threads.submit(ids_in, ask(api, job_id)) for _ in range(4)]
        assert api("GET", f"/v1/jobs/{job_id}").status_code == 200
        finish(database, tenant_id, chunks[0])
        assert [stream.result(30) for stream in streams] == [["1", "2", "3"]] * 4


def test_stop_of_the_process_ends_every_stream(
    app: Any, api: Api, database: Database, tenant_id: str
) -> None:
    job_id, _ = make_job(database, tenant_id, 1)
    pieces = ask(api, job_id).response
    assert next(pieces) == b"retry: 1000\n\n"
    timer = threading.Timer(0.2, app.extensions["darkroom"].slots.close)
    timer.start()
    assert set(pieces) <= {b":\n\n"}
    timer.join()


def test_stream_of_another_tenants_job_is_not_found(
    api: Api, app: Any, database: Database, settings: Settings, tenant_id: str
) -> None:
    job_id, _ = make_job(database, tenant_id, 1)
    stranger = Api(app, make_key(database, settings, make_tenant(database)))
    for accept in ("text/event-stream", "application/json"):
        refused = stranger("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": accept})
        assert (refused.status_code, refused.json["code"]) == (404, "job_not_found")


def test_last_event_id_that_is_no_number_is_refused(
    api: Api, database: Database, tenant_id: str
) -> None:
    job_id, _ = make_job(database, tenant_id, 1)
    refused = api("GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"})
    assert (refused.status_code, refused.json["code"]) == (422, "last_event_id_invalid")


def test_stream_of_a_job_whose_events_were_cleaned_up_ends_at_once(
    api: Api, database: Database, tenant_id: str
) -> None:
    job_id, _ = make_job(database, tenant_id, 1)
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job_id)
    end_stopped_jobs(database)
    with database.system() as session:
        session.execute(delete(Event).where(Event.job_id == job_id))
    assert ask(api, job_id).status_code == 204


def test_document_names_every_type_of_event() -> None:
    assert get_args(EventTypeWord) == EVENT_TYPES
