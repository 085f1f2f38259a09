"""The quota of open items: a plan waits for room, plans not for each other, giants fail."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import func, select, update

from app.db.session import Database
from app.jobs import item_quota
from app.jobs.plan import plan_job
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk, Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.clock import Clock
from tests.jobs import chunk_ids, claim, look_at_chunk, look_at_job
from tests.plans import BUCKET, put, run_plan, submit


def plan_once(db: Database, store: ObjectStore, settings: Settings, job_id: str) -> None:
    """One attempt at the job's plan."""
    with db.system() as session:
        chunk = session.scalars(
            select(Chunk).where(Chunk.job_id == job_id, Chunk.task == ChunkTask.PLAN)
        ).one()
        session.execute(update(Chunk).where(Chunk.id == chunk.id).values(due_at=func.now()))
    lease = claim(db, chunk.tenant_id, chunk.id, task=ChunkTask.PLAN)
    assert plan_job(db, store, settings, lease, should_stop=lambda: False)


def items_job(db: Database, store: ObjectStore, tenant_id: str, count: int) -> str:
    store.ensure_bucket(BUCKET)
    lines = "\n".join(json.dumps({"key": f"{number}.png"}) for number in range(count))
    return submit(db, tenant_id, {"manifest": put(store, f"{tenant_id}/{count}.jsonl", lines)})


def test_plan_over_the_quota_of_items_waits_until_there_is_room(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str
) -> None:
    tight = settings.model_copy(update={"max_open_items": 10})
    first = items_job(database, objects, tenant_id, 10)
    second = items_job(database, objects, tenant_id, 7)
    run_plan(database, objects, tight, tenant_id, first)
    plan_once(database, objects, tight, second)
    (plan_id,) = chunk_ids(database, second)
    waiting = look_at_chunk(database, plan_id)
    assert waiting.state == ChunkState.PENDING
    assert waiting.due_at > waiting.created_at
    assert (waiting.kills, waiting.faults) == (0, 0)
    assert look_at_job(database, tenant_id, second).state == JobState.VALIDATING
    with database.system() as session:
        session.execute(update(Job).where(Job.id == first).values(succeeded=9))
    plan_once(database, objects, tight, second)
    assert look_at_job(database, tenant_id, second).state == JobState.QUEUED


def test_plans_never_wait_for_each_other(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str
) -> None:
    tight = settings.model_copy(update={"max_open_items": 10})
    older, younger = (items_job(database, objects, tenant_id, 8 + n) for n in range(2))
    with database.system() as session:
        # Both have begun, and together they are too many already.
        session.execute(update(Job).where(Job.id.in_([older, younger])).values(total=9))
    plan_once(database, objects, tight, older)
    assert look_at_job(database, tenant_id, older).state == JobState.QUEUED


def test_count_far_from_a_large_limit_serves_for_a_second_and_no_longer(
    database: Database,
    objects: ObjectStore,
    settings: Settings,
    tenant_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(item_quota, "monotonic_seconds", clock)
    limit = settings.max_open_items
    first, second, third = (items_job(database, objects, tenant_id, 1 + n) for n in range(3))
    plan_once(database, objects, settings, first)
    with database.system() as session:
        # Another process plans as much as there may be.
        session.execute(update(Job).where(Job.id == first).values(total=limit))
    clock.now += 0.9
    plan_once(database, objects, settings, second)
    assert look_at_job(database, tenant_id, second).state == JobState.QUEUED
    clock.now += 0.1
    plan_once(database, objects, settings, third)
    assert look_at_job(database, tenant_id, third).state == JobState.VALIDATING


def test_items_of_the_plan_that_counted_are_others_to_the_next_one(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str
) -> None:
    giant, younger = (items_job(database, objects, tenant_id, 1 + n) for n in range(2))
    (plan_id,) = chunk_ids(database, giant)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    limit = settings.max_open_items
    with database.system() as session:
        # Its plan has come far, and goes on.
        session.execute(update(Job).where(Job.id == giant).values(total=limit))
    assert not item_quota.ItemQuota(database, lease, settings).must_wait(limit)
    plan_once(database, objects, settings, younger)
    assert look_at_job(database, tenant_id, younger).state == JobState.VALIDATING


def test_job_that_alone_has_too_many_items_fails_and_says_so(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str
) -> None:
    job_id = items_job(database, objects, tenant_id, 11)
    job = run_plan(
        database, objects, settings.model_copy(update={"max_open_items": 10}), tenant_id, job_id
    )
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "too_many_items"
    assert "more than 10 items" in job.error["detail"]
