"""The workers of the fault runs, without any fault: they answer as the oracle expects."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.session import Database
from app.jobs.states import JobState
from app.jobs.tables import Item
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.faults.images import expected_classes
from tests.faults.library import draw_pictures, put_manifest, register_model, submit_pictures
from tests.faults.plan import Plan, PlannedFault
from tests.nursery import run_forked
from tests.service import environment, running_service


@pytest.mark.parametrize("plan", [Plan(), Plan(fake_decode=True)], ids=["decoded", "not decoded"])
def test_worker_of_the_fault_runs_answers_by_the_rule_that_the_oracle_knows(
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    tmp_path: Path,
    plan: Plan,
) -> None:
    objects.ensure_bucket(settings.bucket)
    register_model(database, objects, settings.bucket, tenant_id)
    pictures = draw_pictures(1, 300)
    manifest = put_manifest(objects, tenant_id, pictures)
    with running_service(settings, database, tmp_path, "tests.faults.worker") as service:
        service.start_worker("io", chunk_items=64)
        service.start_worker("inference", decode_processes=1, variables=plan.as_environment())
        job_id = submit_pictures(database, tenant_id, manifest, settings.bucket)
        ended = service.wait_for_end(tenant_id, job_id)
    assert ended.state == JobState.SUCCEEDED, ended.error
    with database.tenant(tenant_id) as session:
        items = session.scalars(
            select(Item).where(Item.job_id == job_id).order_by(Item.ordinal)
        ).all()
    assert [item.custom_id for item in items] == [picture.custom_id for picture in pictures]
    for item, picture in zip(items, pictures, strict=True):
        assert item.prediction is not None
        assert [name for name, _ in item.prediction] == expected_classes(picture.data)


def test_plan_that_names_no_point_of_the_service_ends_the_worker_at_once(
    settings: Settings,
) -> None:
    plan = Plan(faults=(PlannedFault("after_lunch"),))
    variables = environment(settings) | plan.as_environment()
    ended = run_forked("tests.faults.worker", ["--role", "io"], variables, seconds=120)
    assert ended.status != 0
    assert "no such point: after_lunch" in ended.said
