"""Workers serve all tenants: none learns of their machines, or of what others have them do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from app.cli.main import app as commands
from app.db.session import Database
from app.ids import MODEL_VERSION, new_id
from app.jobs.tables import WorkerRow
from app.queues.names import Queue
from app.settings import Settings
from tests.api_client import Api, make_key
from tests.jobs import add_worker
from tests.service import environment

#: What a tenant may know of a worker; whatever is added is thought about here.
SHOWN = {"id", "queue", "slots", "state", "started_at", "last_seen_at", "gone_at"}


@pytest.fixture
def worker(database: Database) -> dict[str, Any]:
    """A living worker whose every word would be known again."""
    told = {
        "host": "gpu-7.inside.example",
        "name": f"gpu-7.inside.example:{new_id(MODEL_VERSION)}",
        "pid": 4242424,
        "device": "cuda:5",
        "warm_versions": [new_id(MODEL_VERSION)],
    }
    with database.system() as session:
        worker_id = add_worker(session, Queue.TRAINING)
        session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(**told))
    return {"id": worker_id, **told}


def test_admin_of_a_tenant_sees_no_host_process_device_or_model(
    app: Any,
    settings: Settings,
    database: Database,
    tenant_id: str,
    worker: dict[str, Any],
) -> None:
    api = Api(app, make_key(database, settings, tenant_id))
    answer = api("GET", "/v1/workers?limit=1000")
    shown = {row["id"]: row for row in answer.json["data"]}[worker["id"]]
    assert set(shown) == SHOWN
    assert (shown["queue"], shown["state"]) == ("training", "alive")
    for word in (worker["host"], str(worker["pid"]), worker["device"], *worker["warm_versions"]):
        assert word not in answer.text


def test_operator_sees_them_in_the_database(
    settings: Settings, worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(commands, ["workers", "--json"])
    assert done.exit_code == 0, done.output
    shown = {row["id"]: row for row in json.loads(done.stdout)}[worker["id"]]
    assert {name: shown[name] for name in worker} == worker
    table = CliRunner().invoke(commands, ["workers"])
    assert worker["host"] in table.stdout.replace("\n", "")
