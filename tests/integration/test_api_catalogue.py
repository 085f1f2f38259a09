"""The catalogue through the API, the client and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from httpx2 import WSGITransport
from typer.testing import CliRunner, Result

from app.cli.connect import Service
from app.cli.exits import Exit
from app.cli.main import app as command_line
from app.client import ApiError, Darkroom
from app.client.values import Job
from app.datasets.freeze import freeze_dataset
from app.datasets.resolve import resolve_dataset
from app.datasets.tables import Split
from app.db.session import Database
from app.jobs.states import JobKind
from app.models.evaluations import record_evaluation
from app.models.promote import move_alias
from app.settings import Settings
from tests.api_client import make_key
from tests.factories import add_job, add_upload, add_version, entry

URL = "http://darkroom.test"
Run = Callable[..., Result]


@pytest.fixture
def key(database: Database, settings: Settings, tenant_id: str) -> str:
    """The admin key of a tenant with ``pets`` at 1 (production, 0.9) and 2 (0.92)."""
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, [entry(number) for number in range(4)])
        zoo = freeze_dataset(session, tenant_id, name="zoo", upload_id=upload.id)
        job = add_job(session, tenant_id, JobKind.FINETUNE)
        for accuracy in (0.9, 0.92):
            version = add_version(session, tenant_id)
            record_evaluation(
                session,
                tenant_id,
                version_id=version.id,
                dataset_version_id=zoo.id,
                split=Split.TEST,
                job_id=job.id,
                items=50,
                scores={"accuracy": accuracy},
            )
            if accuracy == 0.9:
                move_alias(session, tenant_id, "pets", "production", version.id)
    return make_key(database, settings, tenant_id)


@pytest.fixture
def darkroom(app: Any, key: str) -> Darkroom:
    return Darkroom(URL, key, http=WSGITransport(app, raise_app_exceptions=False))


@pytest.fixture
def run(app: Any, key: str) -> Run:
    def invoke(*words: str, code: Exit = Exit.DONE) -> Result:
        transport = WSGITransport(app, raise_app_exceptions=False)
        done = CliRunner().invoke(
            command_line,
            ["models", *words],
            obj=Service(url=URL, http=transport),
            env={"DARKROOM_API_KEY": key},
        )
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_client_promotes_and_rolls_back(darkroom: Darkroom) -> None:
    catalogue = darkroom.catalogue
    assert catalogue.set_gate("pets", margin=0.05)["metric"] == "accuracy"
    with pytest.raises(ApiError) as caught:
        catalogue.promote("pets", 2)
    assert (caught.value.code, caught.value.status) == ("gate_not_passed", 409)
    with pytest.raises(ApiError) as caught:
        darkroom.models.set_alias("pets", "production", 2)
    assert caught.value.code == "alias_gated"
    catalogue.set_gate("pets", margin=0.01, dataset="zoo")
    moved = catalogue.promote("pets", 2)
    assert moved.version == 2
    assert moved.verdict is not None
    assert (moved.verdict["candidate"], moved.verdict["incumbent"]) == (0.92, 0.9)
    assert moved.gate is not None
    assert moved.gate["dataset"] == "zoo"
    assert [move.kind for move in catalogue.moves("pets")] == ["promoted", "moved"]
    assert catalogue.roll_back("pets").to_version == 1
    assert darkroom.models.find("pets").number == 1
    catalogue.remove_gate("pets")
    assert catalogue.alias("pets").gate is None


def test_promotion_may_state_its_own_gate_where_the_alias_has_none(darkroom: Darkroom) -> None:
    with pytest.raises(ApiError) as caught:
        darkroom.catalogue.promote("pets", 2)
    assert caught.value.code == "gate_missing"
    moved = darkroom.catalogue.promote("pets", 2, metric="accuracy", margin=0.02)
    assert (moved.version, moved.gate) == (2, None)


def test_promotion_evaluates_what_was_not_yet(
    darkroom: Darkroom, database: Database, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        third = add_version(session, tenant_id)
        zoo = resolve_dataset(session, tenant_id, "zoo")
    images = []

    def wait(job: Job) -> Job:
        """What a worker does with an evaluation."""
        images.append((job.input["dataset"], job.input["split"]))
        with database.tenant(tenant_id) as session:
            record_evaluation(
                session,
                tenant_id,
                version_id=third.id,
                dataset_version_id=zoo.id,
                split=Split.TEST,
                job_id=job.id,
                items=50,
                scores={"accuracy": 0.95},
            )
        return replace(job, state="succeeded")

    catalogue = darkroom.catalogue
    catalogue.set_gate("pets", dataset="zoo")
    with pytest.raises(ApiError, match="with --evaluate") as caught:
        catalogue.promote("pets", 3)
    assert caught.value.code == "evaluation_missing"
    assert catalogue.promote("pets", 3, evaluate=True, wait=wait).version == 3
    assert images == [(zoo.id, "test")]


def test_client_takes_versions_out_of_use_and_back(darkroom: Darkroom) -> None:
    with pytest.raises(ApiError) as caught:
        darkroom.catalogue.archive("pets", 1)
    assert caught.value.code == "version_in_use"
    assert darkroom.catalogue.archive("pets", 2).state == "archived"
    assert darkroom.catalogue.delete("pets", 2).delete_asked_at is not None
    assert darkroom.catalogue.restore("pets", 2).state == "ready"
    (found,) = darkroom.catalogue.evaluations("pets", 2)
    assert (found.dataset, found.split, found.items) == ("zoo@1", "test", 50)
    assert found.metrics == {"accuracy": 0.92}


def test_command_line_says_what_it_did_and_why(run: Run) -> None:
    assert "it has no gate" in run("gate", "pets").stdout
    said = run("gate", "pets", "--metric", "accuracy", "--margin", "0.05").stdout
    assert "must be at least 0.05 above that of the version in place" in said
    refused = run("promote", "pets@2", code=Exit.REFUSED)
    assert "accuracy is 0.9200 on zoo@1 test; the version in place has 0.9000" in refused.stderr
    run("gate", "pets", "--metric", "accuracy")
    assert "pets@production is now pets@2" in run("promote", "pets@2").stdout
    assert run("promote", "pets@2").stdout == "pets@production is pets@2 already\n"
    assert "promoted" in run("moves", "pets").stdout
    assert "pets@1 again, after pets@2" in run("rollback", "pets").stdout
    assert "0.9200" in run("scores", "pets@2").stdout
    run("archive", "pets@2")
    assert "models restore pets@2" in run("delete", "pets@2").stdout
    assert json.loads(run("restore", "pets@2", "--json").stdout)["state"] == "ready"
    assert "no gate any more" in run("gate", "pets", "--remove").stdout
    run("gate", "pets", "--remove", "--metric", "f1", code=Exit.USAGE)
