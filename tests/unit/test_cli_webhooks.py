"""`darkroom webhooks list` tells which of them are in trouble, and why."""

import io
from datetime import UTC, datetime, timedelta

from rich.console import Console
from typer.testing import CliRunner

from app.cli.connect import Service
from app.cli.main import app
from tests.unit.fake_service import KEY, URL, FakeService, page


def webhook(name, **fields):
    return {
        "id": name,
        "url": "https://example.com",
        "events": ["job.succeeded"],
        "state": "enabled",
        "disabled_reason": None,
        "first_failed_at": None,
        **fields,
    }


def test_list_says_why_a_webhook_is_disabled_and_since_when_one_fails(monkeypatch):
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    since = (datetime.now(UTC) - timedelta(hours=5)).isoformat()
    rows = [
        webhook("whk_well"),
        webhook("whk_ill", first_failed_at=since),
        webhook("whk_old", signed=False),
        webhook("whk_dead", state="disabled", disabled_reason="failing", first_failed_at=since),
    ]
    service = FakeService()
    service.on("GET /v1/webhooks", page(rows))
    shown = CliRunner().invoke(
        app, ["webhooks", "list"], obj=Service(url=URL, http=service.transport)
    )
    assert shown.exit_code == 0, shown.output
    words = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.stdout.splitlines()}
    assert words["whk_well"].startswith("enabled https://")
    assert words["whk_ill"].startswith("enabled (failing since 5 h ago) https://")
    assert words["whk_old"].startswith("enabled (not signed) https://")
    assert words["whk_dead"].startswith("disabled (failing) https://")


def test_answers_to_deliveries_are_whole_in_80_columns(monkeypatch):
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("app.cli.console.stdout", lambda: terminal)
    delivery = {
        "id": f"dlv_{'0' * 26}",
        "state": "delivered",
        "event_type": "job.partially_succeeded",
        "job_id": f"job_{'0' * 26}",
        "attempts": 1,
        "last_status": 204,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    service = FakeService()
    service.on("GET /v1/webhooks/whk_1/deliveries", page([delivery]))
    words = ["webhooks", "deliveries", "whk_1"]
    done = CliRunner().invoke(app, words, obj=Service(url=URL, http=service.transport))
    assert done.exit_code == 0, done.output
    shown = screen.getvalue().splitlines()[-1]
    assert shown.split() == [delivery["id"], "delivered", "job.partially_succeeded", "204"]
