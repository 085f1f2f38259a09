"""One item that kills its workers, in real processes that somebody starts again."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import select

from app.db.session import Database
from app.jobs.states import TERMINAL_JOB_STATES, ItemState, JobState
from app.jobs.tables import Item
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.faults.images import colour_of
from tests.faults.library import draw_pictures, put_manifest, register_model, submit_pictures
from tests.faults.plan import Plan
from tests.service import Service, running_service

CHUNK = 8
POISONOUS = 21


def keep_a_worker(service: Service, plan: Plan, ended: threading.Event, deaths: list[int]) -> None:
    """Be the supervisor of one worker until the job has ended."""
    while not ended.is_set():
        worker = service.start_worker(
            "inference", decode_processes=1, variables=plan.as_environment()
        )
        while worker.process.poll() is None and not ended.wait(0.1):
            pass
        status = worker.process.poll()
        if status is not None:
            deaths.append(status)


def test_item_that_kills_every_worker_fails_alone_and_its_neighbours_succeed(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path
) -> None:
    objects.ensure_bucket(settings.bucket)
    register_model(database, objects, settings.bucket, tenant_id)
    pictures = draw_pictures(1, 40)
    manifest = put_manifest(objects, tenant_id, pictures)
    plan = Plan(poison=f"{colour_of(pictures[POISONOUS].data):06x}")
    ended = threading.Event()
    deaths: list[int] = []
    with running_service(settings, database, tmp_path, "tests.faults.worker") as service:
        service.start_worker("io", chunk_items=CHUNK)
        job_id = submit_pictures(database, tenant_id, manifest, settings.bucket)
        supervisor = threading.Thread(target=keep_a_worker, args=(service, plan, ended, deaths))
        supervisor.start()
        try:
            job = service.wait_for_end(tenant_id, job_id, seconds=400)
        finally:
            ended.set()
            supervisor.join(150)
    assert job.state in TERMINAL_JOB_STATES
    assert (job.state, job.succeeded, job.failed) == (JobState.PARTIALLY_SUCCEEDED, 39, 1)
    with database.system() as session:
        (item,) = session.scalars(
            select(Item).where(Item.job_id == job_id, Item.state == ItemState.FAILED)
        )
    assert item.custom_id == pictures[POISONOUS].custom_id
    assert (item.error or {})["code"] == "worker_killed"
    # Two for the chunk as a whole, and one for each halving of its eight items.
    assert 2 <= len(deaths) <= 2 + 3
