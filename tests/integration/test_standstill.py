"""Workers that come to a standstill, as real processes: they end themselves and work goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.db.session import Database
from app.jobs.cancel import cancel_job
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk, Item
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.faults.library import draw_pictures, put_manifest, register_model, submit_pictures
from tests.faults.plan import Plan, PlannedFault
from tests.service import Service, WorkerHandle, running_service, wait_until
from worker.exits import ExitCode

#: Workers start torch, on a machine that may be busy.
PATIENCE = 120


@pytest.fixture
def service(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path
) -> Iterator[Service]:
    """A dispatcher, a planner, and the model ``colours``."""
    objects.ensure_bucket(settings.bucket)
    register_model(database, objects, settings.bucket, tenant_id)
    with running_service(settings, database, tmp_path, "tests.faults.worker") as service:
        service.start_worker("io", chunk_items=64)
        yield service


def submit(db: Database, objects: ObjectStore, settings: Settings, tenant_id: str, n: int) -> str:
    manifest = put_manifest(objects, tenant_id, draw_pictures(1, n))
    return submit_pictures(db, tenant_id, manifest, settings.bucket)


def logged(worker: WorkerHandle, event: str) -> dict[str, Any]:
    """The one line of the worker's log with this event."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in worker.log.read_text().splitlines() if line[:1] == "{"
    ]
    (found,) = [line for line in lines if line["event"] == event]
    return found


def kills_of(db: Database, job_id: str) -> list[int]:
    with db.system() as session:
        return list(session.scalars(select(Chunk.kills).where(Chunk.job_id == job_id)))


@pytest.mark.parametrize("where", ["forward", "fetched"])
def test_worker_that_hangs_logs_its_stacks_and_ends_and_another_finishes_the_job(
    service: Service,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    where: str,
) -> None:
    plan = Plan(faults=(PlannedFault(where, "hang", nth=2),))
    hanging = service.start_worker(
        "inference", decode_processes=1, stall_seconds=2, variables=plan.as_environment()
    )
    job_id = submit(database, objects, settings, tenant_id, 200)
    assert hanging.process.wait(PATIENCE) == ExitCode.STALLED
    stalled = logged(hanging, "worker_stalled")
    assert any("acts.py" in line for stack in stalled["stacks"].values() for line in stack)
    service.start_worker("inference", decode_processes=1)
    ended = service.wait_for_end(tenant_id, job_id, seconds=PATIENCE)
    assert ended.state == JobState.SUCCEEDED, ended.error
    assert ended.succeeded == 200
    # It counted as a kill, and a chunk that came after says nothing of it.
    assert max(kills_of(database, job_id)) == 1


def hang_in_forward(service: Service, folder: Path, **settings: Any) -> WorkerHandle:
    """A worker that hangs in its first forward pass."""
    plan = Plan(faults=(PlannedFault("forward", "hang"),), ledger=str(folder / "ledger"))
    return service.start_worker(
        "inference", decode_processes=1, variables=plan.as_environment(), **settings
    )


def wait_until_it_hangs(folder: Path) -> None:
    # Written just before it does.
    wait_until((folder / "ledger").exists, "the worker hangs in forward", seconds=PATIENCE)


def test_worker_that_hangs_while_its_job_is_cancelled_ends_too_and_the_job_is_cancelled(
    service: Service,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    tmp_path: Path,
) -> None:
    hanging = hang_in_forward(service, tmp_path, stall_seconds=4)
    job_id = submit(database, objects, settings, tenant_id, 100)
    wait_until_it_hangs(tmp_path)
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job_id)
    assert hanging.process.wait(PATIENCE) == ExitCode.STALLED
    ended = service.wait_for_end(tenant_id, job_id, seconds=PATIENCE)
    assert ended.state == JobState.CANCELLED


def test_worker_told_to_stop_in_the_middle_records_what_it_finished_and_frees_its_lease(
    service: Service,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
) -> None:
    leaving = service.start_worker(
        "inference",
        decode_processes=1,
        image_batch_size=1,
        variables=Plan(forward_seconds=0.3).as_environment(),
    )
    job_id = submit(database, objects, settings, tenant_id, 100)

    def is_in_the_middle() -> bool:
        with database.system() as session:
            return bool(
                session.scalar(
                    select(Chunk.id).where(Chunk.worker_id == leaving.id, Chunk.progress > 0)
                )
            )

    wait_until(is_in_the_middle, "the worker has finished some images", seconds=PATIENCE)
    assert leaving.stop() == 0
    with database.system() as session:
        chunks = session.scalars(
            select(Chunk).where(Chunk.job_id == job_id, Chunk.task == ChunkTask.PREDICT)
        ).all()
        recorded = session.scalar(select(func.count()).where(Item.job_id == job_id))
    # Nobody else works on it: what was recorded is what it had finished, a prefix of its chunks.
    assert {chunk.state for chunk in chunks} == {ChunkState.PENDING}
    assert {(chunk.worker_id, chunk.lease_until, chunk.kills) for chunk in chunks} == {
        (None, None, 0)
    }
    assert recorded
    assert sum(chunk.lo - chunk.first_item for chunk in chunks) == recorded < 100
    service.start_worker("inference", decode_processes=1)
    ended = service.wait_for_end(tenant_id, job_id, seconds=PATIENCE)
    assert (ended.state, ended.succeeded) == (JobState.SUCCEEDED, 100)
    assert set(kills_of(database, job_id)) == {0}


def test_drain_that_is_over_gives_back_what_hangs_and_counts_no_kill(
    service: Service,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    tmp_path: Path,
) -> None:
    hanging = hang_in_forward(service, tmp_path, drain_seconds=1)
    job_id = submit(database, objects, settings, tenant_id, 100)
    wait_until_it_hangs(tmp_path)
    assert hanging.stop() == ExitCode.DRAIN_OVER
    with database.system() as session:
        held = session.scalars(select(Chunk.id).where(Chunk.worker_id == hanging.id)).all()
    assert not held
    service.start_worker("inference", decode_processes=1)
    ended = service.wait_for_end(tenant_id, job_id, seconds=PATIENCE)
    assert ended.state == JobState.SUCCEEDED, ended.error
    assert set(kills_of(database, job_id)) == {0}


def test_deaf_worker_ends_itself_and_one_that_hears_takes_its_bells(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path
) -> None:
    objects.ensure_bucket(settings.bucket)
    register_model(database, objects, settings.bucket, tenant_id)
    with running_service(settings, database, tmp_path, "tests.deaf_worker") as service:
        deaf = service.start_worker("io", deaf_seconds=2)
        job_id = submit(database, objects, settings, tenant_id, 10)
        assert deaf.process.wait(PATIENCE) == ExitCode.DEAF
        assert logged(deaf, "worker_deaf")["queue"] == "io"
        assert service.look_at(tenant_id, job_id).state == JobState.VALIDATING
    with running_service(settings, database, tmp_path, goes_on=True) as service:
        hearing = service.start_worker("io", deaf_seconds=2)
        wait_until(
            lambda: service.look_at(tenant_id, job_id).state == JobState.QUEUED,
            "the job is planned",
            seconds=PATIENCE,
        )
        assert hearing.stop() == 0
