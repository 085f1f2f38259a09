"""`darkroom webhooks list` tells which of them are in trouble, and why."""

from datetime import UTC, datetime, timedelta

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
