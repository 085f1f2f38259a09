"""What tests of the client and the command line share: a service in memory, and its command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from app.cli.connect import Service
from app.cli.main import app
from tests.unit.fake_service import KEY, URL, FakeService


@pytest.fixture
def service() -> FakeService:
    """A service that gives queued answers."""
    return FakeService()


@pytest.fixture
def run(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command line against the fake service."""
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    monkeypatch.setattr("app.client.transport.back_off", lambda attempt: 0.0)

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(
            app, [str(word) for word in words], obj=Service(url=URL, http=service.transport)
        )

    return invoke
