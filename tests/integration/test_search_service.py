"""A search through the API and on two real workers, one of which is killed on the way."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select

from app.db.session import Database
from app.jobs.search import submit_search
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk
from app.jobs.trials import list_trials
from app.models.resolve import resolve_version
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.training.recipe import TrainingRecipe
from app.training.search import Search, read_space
from app.training.tables import TrialRow
from tests.api_client import Api, make_app, make_key
from tests.factories import make_tenant
from tests.service import end_open_work, running_service, wait_until
from tests.shapes import put_shapes

SPACE = {"learning_rate": {"low": 1e-3, "high": 5e-2, "log": True}}
TRIAL = insert(TrialRow)


def test_two_workers_try_recipes_at_once_and_one_finishes_what_the_other_left(
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    dataset = put_shapes(database, objects, settings.bucket, tenant_id)
    with running_service(settings, database, tmp_path_factory.mktemp("search")) as service:
        with ThreadPoolExecutor() as pool:
            doomed, _ = pool.map(service.start_worker, ["training", "training"])
        with database.tenant(tenant_id) as session:
            job = submit_search(
                session,
                tenant_id,
                dataset=dataset,
                model="shapes",
                recipe=TrainingRecipe(epochs=10, train_batch_size=8),
                search=Search(read_space(SPACE), trials=3, seed=2),
            )

        def in_work() -> dict[str, int] | None:
            """Worker → number of its trial, once both have a trial with an epoch behind it."""
            with database.tenant(tenant_id) as session:
                begun = {
                    trial.number
                    for trial in list_trials(session, tenant_id, job.id)
                    if trial.state == "running" and trial.epochs
                }
                rows = session.execute(
                    select(Chunk.worker_id, Chunk.lo).where(
                        Chunk.job_id == job.id, Chunk.state == ChunkState.RUNNING
                    )
                ).all()
            found = {str(row.worker_id): row.lo for row in rows if row.lo in begun}
            return found if len(found) == 2 else None

        left = wait_until(in_work, "both workers try a recipe", seconds=60)[doomed.id]
        doomed.kill()
        ended = service.wait_for_end(tenant_id, job.id, seconds=120)
    assert ended.state == JobState.SUCCEEDED, ended.error
    with database.tenant(tenant_id) as session:
        trials = list_trials(session, tenant_id, job.id)
        version = resolve_version(session, tenant_id, "shapes@production")
        attempts = dict(
            session.execute(select(Chunk.lo, Chunk.attempt).where(Chunk.job_id == job.id)).all()
        )
    assert Counter(trial.state for trial in trials) == {"complete": 3}
    assert attempts[left] == 2
    assert trials[left].epochs[0].epoch == 1
    assert version.lineage["search"]["trial"] == (ended.result or {})["trial"]


def test_search_is_asked_for_and_its_trials_are_read_through_the_api(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    api = Api(make_app(settings, objects), make_key(database, settings, tenant_id))
    body = {
        "kind": "search",
        "model": "shapes",
        "input": {"dataset": put_shapes(database, objects, settings.bucket, tenant_id)},
        "options": {"space": SPACE, "trials": 3, "recipe": {"preset": "quick", "epochs": 2}},
    }
    wrong = {**body, "options": {"space": {"momentum": {"low": 0.9, "high": 1.5}}}}
    refused = api("POST", "/v1/jobs", json=wrong)
    assert (refused.status_code, refused.json["code"]) == (422, "search_invalid")
    assert refused.json["errors"][0]["pointer"] == "/options/space/momentum"
    neither = {**body, "options": {"space": {"momentum": 0.9}}}
    refused = api("POST", "/v1/jobs", json=neither)
    assert (refused.status_code, refused.json["code"]) == (422, "request_invalid")
    accepted = api("POST", "/v1/jobs", json=body)
    assert accepted.status_code == 202, accepted.text
    job = accepted.json
    assert (job["counts"]["total"], job["progress"]["unit"]) == (3, "trial")
    assert job["options"]["space"] == SPACE
    assert job["options"]["recipe"]["epochs"] == 2
    with database.tenant(tenant_id) as session:
        for number in range(3):
            session.execute(
                TRIAL.values(
                    job_id=job["id"],
                    number=number,
                    tenant_id=tenant_id,
                    parameters={"learning_rate": 0.01},
                    epochs={"10": [0.5, None], "9": [0.25, 1.5]},
                )
            )
    first = api("GET", job["links"]["trials"], query_string={"limit": 2}).json
    assert ([each["number"] for each in first["data"]], first["has_more"]) == ([0, 1], True)
    assert first["data"][0]["state"] == "waiting"
    assert first["data"][0]["epochs"] == [
        {"epoch": 9, "accuracy": 0.25, "loss": 1.5},
        {"epoch": 10, "accuracy": 0.5, "loss": None},
    ]
    rest = api("GET", job["links"]["trials"], query_string={"after": first["last_id"]}).json
    assert ([each["number"] for each in rest["data"]], rest["has_more"]) == ([2], False)
    stranger = Api(make_app(settings, objects), make_key(database, settings, make_tenant(database)))
    assert stranger("GET", job["links"]["trials"]).status_code == 404
    end_open_work(database)
