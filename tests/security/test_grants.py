"""Sharing a model: nobody sees, runs or takes what was not granted, and a grant can be ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from app.db.session import Database
from app.exports.read import take_snapshot
from app.ids import GRANT, new_id
from app.jobs.states import JobState
from app.jobs.tables import Item
from app.models.states import VersionState
from app.queues.names import Queue
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.doors import ring, worker_inside
from tests.factories import add_upload, add_version, entry
from tests.jobs import chunk_ids, look_at_job
from tests.plans import run_plan
from tests.retries import predict_chunks
from tests.service import running_service
from tests.sharing import Side, add_network, make_side, predict_body, put_pictures
from worker.process import WorkerProcess
from worker.tasks.predict import predict_chunk

#: Words that stand in rows of the owner and are nobody else's business.
SECRETS = ("secret-lineage", "0.98765")


@pytest.fixture
def owner(
    app: Any, settings: Settings, database: Database, objects: ObjectStore, tmp_path: Path
) -> Side:
    """A tenant with the model ``shapes``, whose one version has lineage and scores."""
    side = make_side(app, settings, database)
    version_id = add_network(database, objects, settings, side.tenant_id, tmp_path)
    with database.system() as session:
        session.execute(
            text(
                "UPDATE model_versions SET lineage = CAST(:lineage AS jsonb), "
                "scores = CAST(:scores AS jsonb) WHERE id = :id"
            ),
            {
                "id": version_id,
                "lineage": json.dumps({"dataset": SECRETS[0]}),
                "scores": json.dumps({"accuracy": float(SECRETS[1])}),
            },
        )
    return side


@pytest.fixture
def guest(app: Any, settings: Settings, database: Database) -> Side:
    """Another tenant."""
    return make_side(app, settings, database)


@pytest.fixture
def process(settings: Settings, database: Database) -> Iterator[WorkerProcess]:
    """The inside of a worker for inference."""
    slim = settings.model_copy(update={"decode_processes": 1, "heartbeat_seconds": 0.1})
    process = worker_inside(slim, Queue.INFERENCE, database)
    yield process
    process.decoder.close()


def share(owner: Side, guest: Side, *rights: str, **more: Any) -> dict[str, Any]:
    answer = owner.api(
        "PUT", f"/v1/models/shapes/grants/{guest.name}", json={"rights": list(rights), **more}
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json
    return body


def revoke(owner: Side, guest: Side) -> None:
    answer = owner.api("DELETE", f"/v1/models/shapes/grants/{guest.name}")
    assert answer.status_code == 204, answer.text


def submit(side: Side, model: str, objects: ObjectStore, count: int = 2, **options: Any) -> Any:
    items = put_pictures(objects, side.tenant_id, count)
    return side.api("POST", "/v1/jobs", json=predict_body(model, items, **options))


def planned(
    settings: Settings, database: Database, objects: ObjectStore, side: Side, job_id: str
) -> list[str]:
    """The job's chunks, of one item each, after its plan."""
    small = settings.model_copy(update={"chunk_items": 1})
    job = run_plan(database, objects, small, side.tenant_id, job_id)
    assert job.state == JobState.QUEUED, job.error
    return predict_chunks(database, job_id)


def predictions(database: Database, job_id: str) -> list[list[list[Any]]]:
    with database.system() as session:
        rows = session.scalars(
            select(Item.prediction).where(Item.job_id == job_id).order_by(Item.ordinal)
        )
        return [row for row in rows if row is not None]


def test_model_that_is_not_shared_is_as_one_that_does_not_exist(
    owner: Side, guest: Side, objects: ObjectStore
) -> None:
    answers = []
    for name in (f"{owner.name}/shapes", f"{owner.name}/nothing", "nobody/shapes"):
        for suffix in ("", "@1", "@production"):
            answer = submit(guest, f"{name}{suffix}", objects)
            body = answer.text.replace(f"{name}{suffix}", "…")
            answers.append((answer.status_code, body.replace(answer.headers["X-Request-Id"], "")))
    assert set(answers) == {answers[0]}
    assert answers[0][0] == 404
    assert "model_not_found" in answers[0][1]
    assert guest.api("GET", "/v1/shared-models").json["data"] == []


def test_grant_shows_name_versions_and_terms_and_nothing_else(owner: Side, guest: Side) -> None:
    given = share(owner, guest, "run", answers="top1", max_items_per_day=10)
    assert given["rights"] == ["run"]
    seen = guest.api("GET", "/v1/shared-models")
    (model,) = seen.json["data"]
    assert model["model"] == f"{owner.name}/shapes"
    assert (model["version_numbers"], model["aliases"]) == ([1], {"production": 1})
    assert (model["answers"], model["max_items_per_day"]) == ("top1", 10)
    assert not [word for word in (*SECRETS, owner.tenant_id) if word in seen.text]
    (listed,) = owner.api("GET", "/v1/models/shapes/grants").json["data"]
    assert listed == given
    # The owner's own pages are as closed as ever.
    for path in ("/v1/models/shapes/versions", "/v1/models/shapes/grants"):
        assert guest.api("GET", path).status_code == 404


def test_grantee_runs_the_model_on_real_workers(
    owner: Side,
    guest: Side,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tmp_path: Path,
) -> None:
    share(owner, guest, "run")
    model = f"{owner.name}/shapes"
    with running_service(settings, database, tmp_path) as service:
        service.start_workers("io", "inference")
        job = submit(guest, model, objects, 3, top_k=3)
        assert job.status_code == 202, job.text
        ended = service.wait_for_end(guest.tenant_id, job.json["id"], seconds=120)
    assert ended.state == JobState.SUCCEEDED, ended.error
    for answer in predictions(database, ended.id):
        assert all(round(score, 2) == score for _, score in answer)
    shown = guest.api("GET", f"/v1/jobs/{ended.id}").json["model_version"]
    assert (shown["name"], shown["number"]) == (model, 1)
    assert guest.api("GET", "/v1/shared-models").json["data"][0]["items_today"] == 3
    assert owner.api("GET", "/v1/models/shapes/grants").json["data"][0]["items_today"] == 3
    # The job is the guest's alone.
    assert owner.api("GET", f"/v1/jobs/{ended.id}").status_code == 404
    # And it tells which model answered, also once it may not be asked any more.
    revoke(owner, guest)
    assert guest.api("GET", f"/v1/jobs/{ended.id}").json["model_version"] == shown
    assert guest.api("GET", "/v1/jobs").json["data"][0]["model_version"] == shown
    with database.tenant(guest.tenant_id) as session:
        provenance = take_snapshot(session, guest.tenant_id, ended.id).provenance
    assert provenance.model == f"{model}@1"
    assert provenance.weights_sha256


@pytest.mark.parametrize("answers", ["full", "rounded", "top1"])
def test_answers_are_as_exact_as_the_owner_lets_them_be(
    owner: Side,
    guest: Side,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    process: WorkerProcess,
    answers: str,
) -> None:
    share(owner, guest, "run", answers=answers)
    found = []
    for side, model in ((guest, f"{owner.name}/shapes"), (owner, "shapes")):
        job = submit(side, model, objects, top_k=3, activation="sigmoid").json
        for chunk in planned(settings, database, objects, side, job["id"]):
            ring(process, side.tenant_id, chunk, predict_chunk)
        found.append(predictions(database, job["id"]))
    for seen, exact in zip(*found, strict=True):
        assert len(exact) == 3
        if answers == "full":
            assert seen == exact
        elif answers == "rounded":
            assert seen == [[name, round(score, 2)] for name, score in exact]
        else:
            assert seen == [[exact[0][0], round(exact[0][1], 1)]]


def test_revoked_grant_ends_new_jobs_at_once_and_running_ones_at_their_next_chunk(
    owner: Side,
    guest: Side,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    process: WorkerProcess,
) -> None:
    share(owner, guest, "run")
    model = f"{owner.name}/shapes"
    running = submit(guest, model, objects, 3).json["id"]
    first, second, _ = planned(settings, database, objects, guest, running)
    waiting = submit(guest, model, objects).json["id"]
    ring(process, guest.tenant_id, first, predict_chunk)
    revoke(owner, guest)
    assert submit(guest, model, objects).status_code == 404
    # Warm in this very worker, and yet it answers nothing more.
    ring(process, guest.tenant_id, second, predict_chunk)
    job = look_at_job(database, guest.tenant_id, running)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "model_grant_revoked"
    assert (job.succeeded, job.cancelled) == (1, 2)
    assert len(predictions(database, running)) == 1
    # What was not planned yet fails with its plan.
    job = run_plan(database, objects, settings, guest.tenant_id, waiting)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "model_grant_revoked"
    retried = guest.api("POST", f"/v1/jobs/{running}/retry")
    assert (retried.status_code, retried.json["code"]) == (404, "model_not_found")


def test_stricter_grant_holds_from_the_next_chunk_on(
    owner: Side,
    guest: Side,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    process: WorkerProcess,
) -> None:
    share(owner, guest, "run", answers="full")
    job_id = submit(guest, f"{owner.name}/shapes", objects, activation="sigmoid").json["id"]
    first, second = planned(settings, database, objects, guest, job_id)
    ring(process, guest.tenant_id, first, predict_chunk)
    share(owner, guest, "run", answers="top1")
    ring(process, guest.tenant_id, second, predict_chunk)
    before, after = predictions(database, job_id)
    assert (len(before), len(after)) == (3, 1)


def test_each_right_opens_its_own_door_only(
    owner: Side, guest: Side, database: Database, objects: ObjectStore
) -> None:
    model = f"{owner.name}/shapes"
    with database.tenant(guest.tenant_id) as session:
        upload = add_upload(session, guest.tenant_id, [entry(0), entry(1, "dog", "test")]).id
    frozen = guest.api("POST", "/v1/datasets", json={"name": "mine", "input": {"upload": upload}})
    assert frozen.status_code == 201, frozen.text
    labelled = {"kind": "predict", "model": model, "input": {"dataset": "mine"}}
    share(owner, guest, "evaluate")
    refused = submit(guest, model, objects)
    assert (refused.status_code, refused.json["code"]) == (403, "run_not_granted")
    assert guest.api("POST", "/v1/jobs", json=labelled).status_code == 202
    share(owner, guest, "export")
    for body in (labelled, predict_body(f"{model}@1", put_pictures(objects, "x", 1))):
        refused = guest.api("POST", "/v1/jobs", json=body)
        assert (refused.status_code, refused.json["code"]) == (403, "run_not_granted")


def test_version_that_takes_no_jobs_takes_none_of_a_grantee_either(
    owner: Side, guest: Side, database: Database, objects: ObjectStore
) -> None:
    share(owner, guest, "run")
    with database.tenant(owner.tenant_id) as session:
        pending = add_version(session, owner.tenant_id, "shapes")
    with database.system() as session:
        session.execute(
            text("UPDATE model_versions SET state = :state WHERE id = :id"),
            {"state": VersionState.FAILED, "id": pending.id},
        )
        session.execute(
            text("UPDATE model_versions SET state = :state WHERE tenant_id = :t AND number = 1"),
            {"state": VersionState.ARCHIVED, "t": owner.tenant_id},
        )
    answers = [submit(guest, f"{owner.name}/shapes@{number}", objects) for number in (1, 2, 3)]
    assert [answer.status_code for answer in answers] == [409, 404, 404]
    assert submit(guest, pending.id, objects).status_code == 404


def test_grant_is_refused_that_makes_no_sense(owner: Side, guest: Side) -> None:
    def give(tenant: str, **body: Any) -> tuple[int, str]:
        answer = owner.api("PUT", f"/v1/models/shapes/grants/{tenant}", json=body)
        return answer.status_code, answer.json["code"]

    assert give(owner.name, rights=["run"]) == (422, "grant_to_owner")
    assert give("nobody-here", rights=["run"]) == (404, "tenant_not_found")
    assert give(guest.name, rights=[])[0] == 422
    assert give(guest.name, rights=["run"], max_items_per_day=0)[0] == 422
    gone = owner.api("DELETE", f"/v1/models/shapes/grants/{guest.name}")
    assert (gone.status_code, gone.json["code"]) == (404, "grant_not_found")


TABLES = ("models", "model_versions", "aliases", "grants", "key_budgets", "query_counts")


@pytest.mark.parametrize("granted", [False, True])
def test_database_shows_a_grantee_no_row_of_the_owner_and_functions_only_what_was_granted(
    owner: Side, guest: Side, database: Database, granted: bool
) -> None:
    owner_key = f"key_{owner.api.key.split('_')[1]}"
    owner.api("PUT", f"/v1/keys/{owner_key}/budget", json={"max_items_per_day": 5})
    if granted:
        share(owner, guest, "run", "evaluate", "export")
    with database.tenant(guest.tenant_id) as session:
        for table in TABLES:
            rows = session.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            assert rows == 0, table
        versions = session.execute(text("SELECT * FROM shared_versions(NULL, NULL, NULL)")).all()
        models = session.execute(text("SELECT * FROM shared_models()")).all()
        # Not even who else was granted what.
        with_owner_id = text("SELECT * FROM list_grants(:model)")
        assert session.execute(with_owner_id, {"model": model_id(database, owner)}).all() == []
    assert len(versions) == len(models) == int(granted)
    assert not [word for word in SECRETS if word in str(versions) + str(models)]
    with database.anonymous() as session:
        for call in ("shared_versions(NULL, NULL, NULL)", "shared_models()"):
            assert session.execute(text(f"SELECT * FROM {call}")).all() == []


def model_id(database: Database, owner: Side) -> str:
    with database.tenant(owner.tenant_id) as session:
        return str(session.execute(text("SELECT id FROM models")).scalar())


WRITES = {
    "change a version": "UPDATE model_versions SET arch = 'x' WHERE tenant_id = :owner",
    "delete a version": "DELETE FROM model_versions WHERE tenant_id = :owner",
    "rename a model": "UPDATE models SET name = 'mine' WHERE tenant_id = :owner",
    "take a model": "UPDATE models SET tenant_id = :guest WHERE tenant_id = :owner",
    "move an alias": "UPDATE aliases SET name = 'x' WHERE tenant_id = :owner",
    "widen a grant": "UPDATE grants SET rights = '{run,evaluate,export}' WHERE grantee_id = :guest",
    "lift a limit": "UPDATE grants SET max_items_per_day = NULL WHERE grantee_id = :guest",
    "lift a budget": "DELETE FROM key_budgets WHERE tenant_id = :owner",
}


@pytest.mark.parametrize("write", WRITES)
def test_database_lets_a_grantee_write_no_row_of_the_owner(
    owner: Side, guest: Side, database: Database, write: str
) -> None:
    share(owner, guest, "run")
    words = {"owner": owner.tenant_id, "guest": guest.tenant_id}
    with database.tenant(guest.tenant_id) as session:
        assert session.execute(text(f"{WRITES[write]} RETURNING 1"), words).all() == []


def test_database_takes_no_grant_from_anyone_but_the_model_s_owner(
    owner: Side, guest: Side, app: Any, settings: Settings, database: Database
) -> None:
    accomplice = make_side(app, settings, database)
    planted = text(
        "INSERT INTO grants (id, tenant_id, model_id, grantee_id, rights, answers) "
        "VALUES (:id, :giver, :model, :taker, '{run,export}', 'full')"
    )
    model = model_id(database, owner)
    # In the owner's name, in its own with the owner's model, and to oneself through another.
    for giver, taker, error in (
        (owner, guest, ProgrammingError),
        (guest, accomplice, IntegrityError),
        (guest, guest, IntegrityError),
    ):
        words = {"giver": giver.tenant_id, "taker": taker.tenant_id, "model": model}
        with pytest.raises(error), database.tenant(guest.tenant_id) as session:
            session.execute(planted, {"id": new_id(GRANT), **words})
    with database.tenant(accomplice.tenant_id) as session:
        assert session.execute(text("SELECT * FROM shared_models()")).all() == []


def test_answers_asked_are_never_taken_back(
    owner: Side, guest: Side, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    share(owner, guest, "run")
    job_id = submit(guest, f"{owner.name}/shapes", objects).json["id"]
    planned(settings, database, objects, guest, job_id)
    assert len(chunk_ids(database, job_id)) == 3
    for write in (
        "UPDATE query_counts SET items = 0",
        "DELETE FROM query_counts",
        "SELECT spend_queries(:job, -2)",
        "TRUNCATE query_counts",
    ):
        with (
            pytest.raises((ProgrammingError, IntegrityError)),
            database.tenant(guest.tenant_id) as session,
        ):
            session.execute(text(write), {"job": job_id} if ":job" in write else {})
    # Nor can a third tenant count against this one.
    with database.tenant(owner.tenant_id) as session:
        session.execute(text("SELECT * FROM spend_queries(:job, 50)"), {"job": job_id})
    assert owner.api("GET", "/v1/models/shapes/grants").json["data"][0]["items_today"] == 2
