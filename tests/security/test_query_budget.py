"""The query budget: counted once for each planned item, whoever dies, retries or races."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text

from app.db.session import Database
from app.jobs.plan import plan_job
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.scopes import Scope
from tests.api_client import Api, make_key
from tests.factories import add_version
from tests.jobs import chunk_ids, claim, look_at_chunk, look_at_job
from tests.plans import run_plan
from tests.races import racing
from tests.retries import predict_chunks
from tests.sharing import Side, make_side, predict_body, put_pictures

DAY_SECONDS = 24 * 3600


@pytest.fixture
def side(app: Any, settings: Settings, database: Database) -> Side:
    """A tenant with the model ``pets``."""
    side = make_side(app, settings, database)
    with database.tenant(side.tenant_id) as session:
        version = add_version(session, side.tenant_id)
    assert side.api("PUT", "/v1/models/pets/aliases/production", json={"version": 1}).json
    assert version.number == 1
    return side


@pytest.fixture
def robot(app: Any, settings: Settings, database: Database, side: Side) -> Api:
    """A key of the tenant that may have four items a day."""
    key = make_key(database, settings, side.tenant_id, Scope.JOBS_READ, Scope.JOBS_WRITE)
    robot = Api(app, key)
    assert budget(side, robot, 4) == {"max_items_per_day": 4, "items_today": 0}
    return robot


def key_id(api: Api) -> str:
    return f"key_{api.key.split('_')[1]}"


def budget(side: Side, api: Api, items: int | None = 0) -> dict[str, Any]:
    """The budget of the key as it is, or after it was set."""
    path = f"/v1/keys/{key_id(api)}/budget"
    answer = (
        side.api("GET", path)
        if items == 0
        else side.api("PUT", path, json={"max_items_per_day": items})
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json
    return body


def submit(api: Api, objects: ObjectStore, count: int, model: str = "pets") -> Any:
    return api("POST", "/v1/jobs", json=predict_body(model, put_pictures(objects, "b", count)))


def submit_prefix(api: Api, objects: ObjectStore, prefix: str, count: int) -> Any:
    """A job of which nobody knows the number of items before its plan."""
    put_pictures(objects, prefix, count)
    source = {"prefix": f"s3://shared-photos/{prefix}/"}
    return api("POST", "/v1/jobs", json={"kind": "predict", "model": "pets", "input": source})


def assert_spent(job: Job) -> None:
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "query_budget_spent", job.error
    assert job.succeeded == job.failed == 0


def test_job_over_the_budget_is_refused_and_told_when_to_come_again(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    refused = submit(robot, objects, 5)
    assert (refused.status_code, refused.json["code"]) == (429, "query_budget_spent")
    assert 0 < int(refused.headers["Retry-After"]) <= DAY_SECONDS
    first = submit(robot, objects, 3).json["id"]
    assert run_plan(database, objects, settings, side.tenant_id, first).state == JobState.QUEUED
    assert budget(side, robot)["items_today"] == 3
    assert submit(robot, objects, 2).status_code == 429
    assert submit(robot, objects, 1).status_code == 202
    # Another key of the tenant is none of this one's business.
    assert submit(side.api, objects, 5).status_code == 202


def test_job_that_turns_out_too_large_fails_before_anything_is_answered_and_costs_nothing(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    job_id = submit_prefix(robot, objects, side.tenant_id, 5).json["id"]
    assert_spent(run_plan(database, objects, settings, side.tenant_id, job_id))
    assert predict_chunks(database, job_id) == []
    assert budget(side, robot)["items_today"] == 0


def test_jobs_that_wait_together_cannot_pass_it_one_after_the_other(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    # All fit while none is planned.
    jobs = [submit(robot, objects, 3).json["id"] for _ in range(3)]
    ended = [run_plan(database, objects, settings, side.tenant_id, job) for job in jobs]
    assert [job.state for job in ended] == [JobState.QUEUED, JobState.FAILED, JobState.FAILED]
    assert_spent(ended[1])
    assert budget(side, robot)["items_today"] == 3


def test_plans_that_race_never_pass_it_together(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    budget(side, robot, 10)
    runners = 5
    for _ in range(2):
        jobs = [submit(robot, objects, 3).json["id"] for _ in range(runners)]
        leases = [
            claim(database, side.tenant_id, *chunk_ids(database, job), task=ChunkTask.PLAN)
            for job in jobs
        ]
        barrier = Barrier(runners)

        def plan(lease: Any, barrier: Barrier = barrier) -> None:
            barrier.wait(timeout=30)
            plan_job(database, objects, settings, lease, should_stop=lambda: False)

        with ThreadPoolExecutor(runners) as pool:
            list(pool.map(plan, leases))
        states = [look_at_job(database, side.tenant_id, job).state for job in jobs]
        assert sorted(states) == [JobState.FAILED] * 2 + [JobState.QUEUED] * 3
        assert budget(side, robot)["items_today"] == 9
        yesterday(database, side)


def test_plan_waits_for_one_that_has_counted_and_not_committed(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    # The day's counter is there already: nobody waits for its first row.
    first = submit(robot, objects, 1).json["id"]
    run_plan(database, objects, settings, side.tenant_id, first)
    one, other = (submit(robot, objects, 3).json["id"] for _ in range(2))
    spend = text("SELECT refused_by FROM spend_queries(:job, 3)")

    def seal() -> list[Any]:
        with database.tenant(side.tenant_id) as session:
            return list(session.scalars(spend, {"job": other}))

    with racing(database) as race:
        with database.tenant(side.tenant_id) as session:
            assert session.scalars(spend, {"job": one}).all() == []
            second = race(seal)
            second.waits()
        assert second.answer() == ["key"]
    assert budget(side, robot)["items_today"] == 4


def test_plan_that_is_begun_again_counts_once(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    job_id = submit(robot, objects, 4).json["id"]
    (chunk,) = chunk_ids(database, job_id)
    lease = claim(database, side.tenant_id, chunk, task=ChunkTask.PLAN)
    # Lost while it planned, and told so when it wants to seal: nothing was counted.
    with database.system() as session:
        session.execute(
            text(
                "UPDATE chunks SET state = 'pending', worker_id = NULL, lease_until = NULL "
                "WHERE id = :id"
            ),
            {"id": chunk},
        )
    with pytest.raises(Exception, match=r"(?i)lease|attempt"):
        plan_job(database, objects, settings, lease, should_stop=lambda: False)
    assert budget(side, robot)["items_today"] == 0
    run_again = claim(database, side.tenant_id, chunk, task=ChunkTask.PLAN)
    assert plan_job(database, objects, settings, run_again, should_stop=lambda: False)
    assert look_at_chunk(database, chunk).state == ChunkState.DONE
    assert budget(side, robot)["items_today"] == 4


def test_retry_counts_again_and_a_cancel_gives_nothing_back(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    job_id = submit(robot, objects, 3).json["id"]
    run_plan(database, objects, settings, side.tenant_id, job_id)
    assert robot("POST", f"/v1/jobs/{job_id}/cancel").status_code == 202
    with database.system() as session:
        session.execute(
            text(
                "UPDATE jobs SET state = 'cancelled', cancelled = total, ended_at = now() "
                "WHERE id = :id"
            ),
            {"id": job_id},
        )
    assert budget(side, robot)["items_today"] == 3
    retry = robot("POST", f"/v1/jobs/{job_id}/retry")
    assert retry.status_code == 202, retry.text
    assert_spent(run_plan(database, objects, settings, side.tenant_id, retry.json["id"]))
    yesterday(database, side)
    budget(side, robot, 3)
    retry = robot("POST", f"/v1/jobs/{job_id}/retry").json["id"]
    assert run_plan(database, objects, settings, side.tenant_id, retry).state == JobState.QUEUED
    assert budget(side, robot)["items_today"] == 3
    spent = robot("POST", f"/v1/jobs/{job_id}/retry")
    assert (spent.status_code, spent.json["code"]) == (429, "query_budget_spent")


def yesterday(database: Database, side: Side) -> None:
    """Let what was counted today be yesterday's."""
    with database.system() as session:
        session.execute(
            text("DELETE FROM query_counts WHERE tenant_id = :id AND day < current_date"),
            {"id": side.tenant_id},
        )
        session.execute(
            text("UPDATE query_counts SET day = day - 1 WHERE tenant_id = :id"),
            {"id": side.tenant_id},
        )


def test_new_day_brings_a_new_budget(
    side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    job_id = submit(robot, objects, 4).json["id"]
    run_plan(database, objects, settings, side.tenant_id, job_id)
    assert submit(robot, objects, 1).status_code == 429
    yesterday(database, side)
    assert submit(robot, objects, 4).status_code == 202


def test_key_that_succeeds_another_has_the_same_budget(
    app: Any, side: Side, robot: Api, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    job_id = submit(robot, objects, 3).json["id"]
    run_plan(database, objects, settings, side.tenant_id, job_id)
    made = side.api("POST", f"/v1/keys/{key_id(robot)}/rotate").json
    fresh = Api(app, made["text"])
    assert submit(fresh, objects, 2).status_code == 429
    assert budget(side, fresh) == {"max_items_per_day": 4, "items_today": 3}
    budget(side, fresh, None)
    assert submit(robot, objects, 5).status_code == 202


def test_owner_s_limit_binds_the_grantee_whatever_key_asks(
    app: Any, side: Side, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    guest = make_side(app, settings, database)
    terms = {"rights": ["run"], "max_items_per_day": 4}
    grant = f"/v1/models/pets/grants/{guest.name}"
    assert side.api("PUT", grant, json=terms).status_code == 200
    model = f"{side.name}/pets"
    refused = submit(guest.api, objects, 5, model)
    assert (refused.status_code, refused.json["code"]) == (429, "query_budget_spent")
    other = Api(app, make_key(database, settings, guest.tenant_id, name="other"))
    # Each key has more than enough of its own.
    budget(guest, other, 100)
    jobs = [submit(api, objects, 3, model).json["id"] for api in (guest.api, other)]
    first, second = (run_plan(database, objects, settings, guest.tenant_id, job) for job in jobs)
    assert first.state == JobState.QUEUED
    assert_spent(second)
    # Refused by one budget, it is counted against neither.
    assert budget(guest, other)["items_today"] == 0
    (seen,) = side.api("GET", "/v1/models/pets/grants").json["data"]
    assert (seen["max_items_per_day"], seen["items_today"]) == (4, 3)
    # Giving the grant anew brings no new day.
    side.api("DELETE", grant)
    side.api("PUT", grant, json=terms)
    assert submit(other, objects, 2, model).status_code == 429
    # The owner's own jobs are not counted.
    assert submit(side.api, objects, 9).status_code == 202


def test_budget_is_an_admin_s_matter_and_a_whole_number(side: Side, robot: Api) -> None:
    path = f"/v1/keys/{key_id(robot)}/budget"
    refused = robot("PUT", path, json={"max_items_per_day": None})
    assert (refused.status_code, refused.json["code"]) == (403, "scope_missing")
    for wrong in (0, -1, 1.5, "4", True):
        assert side.api("PUT", path, json={"max_items_per_day": wrong}).status_code == 422
    assert budget(side, robot)["max_items_per_day"] == 4
