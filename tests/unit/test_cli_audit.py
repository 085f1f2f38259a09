"""`darkroom audit list` and the client's audit log, against a service in memory."""

import json

import httpx2
from typer.testing import CliRunner

from app.cli.connect import Service
from app.cli.main import app
from tests.unit.fake_service import KEY, URL, FakeService, page

ENTRY = {
    "id": "aud_1",
    "at": "2026-11-25T04:00:00+00:00",
    "actor": "operator",
    "action": "key.created",
    "outcome": "done",
    "target": "key_1",
    "request_id": None,
    "client_address": None,
    "details": {"name": "first"},
    "seq": 7,
    "hash": "ab" * 32,
}


def run(service, *words):
    return CliRunner().invoke(
        app, ["audit", "list", *words], obj=Service(url=URL, http=service.transport)
    )


def test_list_shows_who_did_what_and_asks_only_for_what_is_wanted(monkeypatch):
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    service = FakeService()
    service.on("GET /v1/audit", page([ENTRY]))
    shown = run(service, "--action", "key.created", "--since", "2026-11-24")
    assert shown.exit_code == 0, shown.output
    for word in ("operator", "key.created", "key_1"):
        assert word in shown.stdout
    (asked,) = service.asked("GET /v1/audit")
    assert dict(asked.url.params) == {
        "action": "key.created",
        "since": "2026-11-24T00:00:00+00:00",
    }
    assert json.loads(run(service, "--json").stdout) == [ENTRY]


def test_client_reads_entries_and_the_head_to_keep():
    service = FakeService()
    body = {**json.loads(page([ENTRY]).content), "head": {"seq": 7, "hash": "ab" * 32}}
    service.on("GET /v1/audit", httpx2.Response(200, json=body))
    with service.client() as darkroom:
        (entry,) = darkroom.audit.list(target="key_1")
        assert (entry.seq, entry.details) == (7, {"name": "first"})
        assert entry.at is not None
        assert entry.at.year == 2026
        assert darkroom.audit.head() == (7, "ab" * 32)
