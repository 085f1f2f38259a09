"""Webhooks over HTTP, through the client and on the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from app.cli.connect import Service
from app.cli.main import app as darkroom
from app.client import Darkroom
from app.db.session import Database
from app.errors import ConflictError
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.scopes import Scope
from app.webhooks.guard import Guard
from app.webhooks.register import create_webhook
from tests.api_client import Api, make_app, make_key
from tests.factories import make_tenant
from tests.webhooks import KEYRING, unchecked

HOOK = "http://127.0.0.1:9/hook"


@pytest.fixture
def app(settings: Settings, objects: ObjectStore) -> Any:
    return make_app(settings.model_copy(update={"webhook_hosts": "127.0.0.1:*"}), objects)


@pytest.fixture
def client(app: Any, api: Api) -> Darkroom:
    return Darkroom("http://here", api.key, http=httpx2.WSGITransport(app=app))


@pytest.fixture
def run(app: Any, api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DARKROOM_API_KEY", api.key)
    service = Service("http://here", httpx2.WSGITransport(app=app))

    def run(*words: str) -> Result:
        done = CliRunner().invoke(darkroom, ["webhooks", *words], obj=service)
        assert done.exit_code == 0, done.output
        return done

    return run


def test_webhook_is_made_listed_tested_replayed_and_forgotten(client: Darkroom) -> None:
    made = client.webhooks.create(HOOK, ["job.failed", "job.progress"])
    assert (made.url, made.events, made.state) == (HOOK, ("job.failed", "job.progress"), "enabled")
    default = client.webhooks.create(HOOK)
    assert "job.succeeded" in default.events
    assert "job.progress" not in default.events
    assert [each.id for each in client.webhooks.list()] == [default.id, made.id]
    assert client.webhooks.get(made.id).id == made.id
    tests = [client.webhooks.test(made.id) for _ in range(3)]
    assert (tests[0].state, tests[0].event_type, tests[0].job_id) == (
        "pending",
        "webhook.test",
        None,
    )
    assert [each.id for each in client.webhooks.deliveries(made.id)] == [
        each.id for each in reversed(tests)
    ]
    assert list(client.webhooks.deliveries(made.id, state="failed")) == []
    assert client.webhooks.replay(made.id, tests[0].id).next_try_at is not None
    assert client.webhooks.enable(made.id).state == "enabled"
    client.webhooks.delete(made.id)
    assert [each.id for each in client.webhooks.list()] == [default.id]


def test_command_line_does_the_same(run: Callable[..., Result]) -> None:
    made = json.loads(run("add", HOOK, "--event", "job.failed", "--json").stdout)
    assert made["events"] == ["job.failed"]
    assert made["secret"].startswith("whsec_")
    shown = run("add", HOOK)
    assert "whsec_" in shown.stdout
    run("remove", shown.stdout.split()[0])
    rotated = run("rotate", made["id"], "--overlap", "2h")
    assert rotated.stdout.startswith("whsec_")
    assert made["secret"] not in rotated.stdout
    assert "signs along for 2h more" in rotated.stderr
    assert json.loads(run("rotate", made["id"], "--overlap", "0", "--json").stdout)["secret"]
    assert made["id"] in run("list").stdout
    assert "whsec_" not in run("list", "--json").stdout
    delivery = json.loads(run("test", made["id"], "--json").stdout)
    deliveries = run("deliveries", made["id"]).stdout
    assert delivery["id"] in deliveries
    assert "webhook.test" in deliveries
    assert "pending" in run("replay", made["id"], delivery["id"]).stdout
    assert "enabled" in run("enable", made["id"]).stdout
    run("remove", made["id"])
    assert run("list").stdout == ""


def test_operator_may_switch_webhooks_off(
    settings: Settings, objects: ObjectStore, database: Database, tenant_id: str
) -> None:
    off = settings.model_copy(update={"webhooks": False, "webhook_hosts": "127.0.0.1:*"})
    api = Api(make_app(off, objects), make_key(database, settings, tenant_id))
    refused = api("POST", "/v1/webhooks", json={"url": HOOK})
    assert (refused.status_code, refused.json["code"]) == (422, "webhooks_off")
    assert "DARKROOM_WEBHOOKS" in refused.json["detail"]


def test_accepted_request_is_not_refused_when_repeated_after_its_name_was_lost(
    app: Any, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = "http://hooks.example:9/"
    guard = Guard(hosts=("*:*", "hooks.example:*"), look_up=lambda *_: ("93.184.216.34",))
    lost = replace(guard, look_up=lambda *_: ())
    asked = {"json": {"url": named}, "headers": {"Idempotency-Key": "one"}}
    here = app.extensions["darkroom"]
    app.extensions["darkroom"] = replace(here, guard=guard)
    made = api("POST", "/v1/webhooks", **asked)
    app.extensions["darkroom"] = replace(here, guard=lost)
    again = api("POST", "/v1/webhooks", **asked)
    assert (made.status_code, again.status_code) == (201, 201)
    assert again.json["id"] == made.json["id"]
    refused = api("POST", "/v1/webhooks", json={"url": named})
    assert (refused.status_code, refused.json["code"]) == (422, "webhook_address_not_allowed")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.2:9/", "webhook_host_not_allowed"),
        ("http://user@127.0.0.1:9/", "webhook_url_invalid"),
        ("gopher://127.0.0.1:9/", "webhook_url_invalid"),
    ],
)
def test_address_that_is_not_allowed_is_refused(api: Api, url: str, code: str) -> None:
    refused = api("POST", "/v1/webhooks", json={"url": url})
    assert (refused.status_code, refused.json["code"]) == (422, code)


def test_number_of_webhooks_is_bounded(api: Api) -> None:
    for _ in range(20):
        assert api("POST", "/v1/webhooks", json={"url": HOOK}).status_code == 201
    refused = api("POST", "/v1/webhooks", json={"url": HOOK})
    assert (refused.status_code, refused.json["code"]) == (409, "too_many_webhooks")


def test_last_place_for_a_webhook_is_given_once_to_two_who_ask_together(
    database: Database, tenant_id: str
) -> None:
    def make() -> None:
        with database.tenant(tenant_id) as session:
            create(session)

    def create(session: Session) -> None:
        create_webhook(session, KEYRING, tenant_id, target=unchecked(HOOK), events=["job.failed"])

    for _ in range(19):
        make()
    with ThreadPoolExecutor(1) as threads:
        with database.tenant(tenant_id) as session:
            create(session)
            other = threads.submit(make)
            wait([other], timeout=0.5)
        with pytest.raises(ConflictError, match="20 webhooks already"):
            other.result(30)


def test_resolver_that_hangs_holds_a_few_threads_of_the_api_and_no_more(app: Any, api: Api) -> None:
    over, asked = threading.Event(), threading.Semaphore(0)

    def hang(*_: str) -> tuple[str, ...]:
        asked.release()
        over.wait(60)
        return ("93.184.215.14",)

    here = app.extensions["darkroom"]
    app.extensions["darkroom"] = replace(here, guard=Guard(look_up=hang))
    places = here.look_up_places.most
    assert places < here.settings.api_threads / 2

    def make() -> Any:
        return api("POST", "/v1/webhooks", json={"url": "https://slow.example/"})

    with ThreadPoolExecutor(places) as threads:
        slow = [threads.submit(make) for _ in range(places)]
        try:
            assert all(asked.acquire(timeout=30) for _ in range(places))
            refused = make()
        finally:
            over.set()
        assert (refused.status_code, refused.json["code"]) == (503, "lookups_busy")
        assert refused.headers["Retry-After"] == "2"
        assert [each.result(30).status_code for each in slow] == [201] * places
    assert make().status_code == 201


def test_webhook_of_another_tenant_is_not_found_by_any_verb(api: Api, database: Database) -> None:
    stranger = make_tenant(database)
    with database.tenant(stranger) as session:
        made, _ = create_webhook(
            session, KEYRING, stranger, target=unchecked(HOOK), events=["job.failed"]
        )
        webhook = made.id
    here = f"/v1/webhooks/{webhook}"
    delivery = "dlv_01k8zj5w3v9q4t6y8b0d2f4h6k"
    for method, path in (
        ("GET", here),
        ("DELETE", here),
        ("POST", f"{here}/enable"),
        ("POST", f"{here}/test"),
        ("GET", f"{here}/deliveries"),
        ("POST", f"{here}/deliveries/{delivery}/replay"),
    ):
        refused = api(method, path)
        assert (refused.status_code, refused.json["code"]) == (404, "webhook_not_found"), path
    assert api("GET", "/v1/webhooks").json["data"] == []


def test_webhooks_are_for_admins(
    app: Any, database: Database, settings: Settings, tenant_id: str
) -> None:
    reader = Api(app, make_key(database, settings, tenant_id, Scope.JOBS_READ, Scope.JOBS_WRITE))
    refused = reader("GET", "/v1/webhooks")
    assert (refused.status_code, refused.json["code"]) == (403, "scope_missing")
