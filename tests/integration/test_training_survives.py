"""A fine-tuning whose workers are killed one after the other ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_checkpoints
from app.jobs.cancel import cancel_job
from app.jobs.states import ChunkState, JobState
from app.jobs.submit import submit_finetune
from app.jobs.tables import Job
from app.models.resolve import get_version
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.training.metrics import read_metrics
from app.training.recipe import TrainingRecipe
from tests.jobs import chunk_ids, look_at_chunk
from tests.service import Service, WorkerHandle, running_service, wait_until
from tests.shapes import freeze_shapes

#: About twelve steps in an epoch.
RECIPE = TrainingRecipe(epochs=6, train_batch_size=8, seed=11)
#: A checkpoint before every step.
ALWAYS = 1e-6


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher and a worker for the archive; the test starts its training workers."""
    with running_service(settings, database, tmp_path_factory.mktemp("survives")) as service:
        service.start_worker("io")
        yield service


def start(service: Service, end_at: str | None = None, seconds: float = 60) -> WorkerHandle:
    """A training worker that keeps a checkpoint each ``seconds`` and ends at a named point.

    Each has the name of the one before, so that the lease of a killed one is freed at once;
    and a lease lasts so long that none ends because the machine is busy.
    """
    return service.start_worker(
        "training",
        module="worker.main" if end_at is None else "tests.dying_worker",
        test_end_at=end_at,
        worker_name="trainer",
        lease_seconds=60,
        checkpoint_seconds=seconds,
        torch_threads=1,
        decode_processes=1,
    )


def submit(db: Database, tenant_id: str, dataset: str) -> Job:
    with db.tenant(tenant_id) as session:
        return submit_finetune(
            session, tenant_id, dataset=dataset, model="shapes", recipe=RECIPE, alias=None
        )


def outcome(service: Service, db: Database, tenant_id: str, job: Job) -> dict[str, Any]:
    """Everything that an ended training has made, apart from ids and times."""
    ended = service.wait_for_end(tenant_id, job.id, seconds=180)
    assert ended.state == JobState.SUCCEEDED, ended.error
    assert ended.model_version_id is not None
    assert ended.result is not None
    with db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, ended.model_version_id)
    return {
        "weights": version.weights_sha256,
        "scores": version.scores,
        "result": {k: v for k, v in ended.result.items() if k != "model_version"},
        "metrics": [row[:3] for row in metrics(db, tenant_id, job) if row[0] not in TIMED],
    }


#: What no two runs have alike.
TIMED = ("epoch_seconds", "images_per_second")


def metrics(
    db: Database, tenant_id: str, job: Job
) -> list[tuple[str, int, float | None, datetime]]:
    with db.tenant(tenant_id) as session:
        points, more = read_metrics(session, tenant_id, job.id)
    assert not more
    return [(point.name, point.step, point.value, point.recorded_at) for point in points]


def test_training_killed_mid_epoch_and_mid_checkpoint_ends_with_the_same_numbers(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    dataset = freeze_shapes(service, database, tenant_id)
    job = submit(database, tenant_id, dataset)
    (chunk_id,) = chunk_ids(database, job.id)

    def newest() -> dict[str, Any]:
        cursor = look_at_chunk(database, chunk_id).cursor
        assert cursor is not None
        return dict(cursor["checkpoints"][0])

    # Mid-epoch, with a step behind it that no checkpoint holds.
    worker = start(service, "checkpoint_begun:18:SIGKILL", ALWAYS)
    assert worker.process.wait(timeout=120) == -signal.SIGKILL
    reached, numbers = newest(), metrics(database, tenant_id, job)
    assert (reached["steps"], reached["epoch"]) == (17, 1)
    assert reached["epoch_steps"] > 0
    assert {step for _, step, *_ in numbers} == {1}

    # Told to stop in an epoch: what it has learnt is kept, and no kill is counted.
    worker = start(service, "checkpoint_begun:1:SIGTERM")
    assert worker.process.wait(timeout=120) == 0
    assert resumed_at(worker) == (reached["epoch"], reached["epoch_steps"])
    chunk = look_at_chunk(database, chunk_id)
    assert (chunk.state, chunk.kills) == (ChunkState.PENDING, 0)
    assert newest()["steps"] > reached["steps"]
    reached = newest()

    # Mid-checkpoint: stored, and dead before the cursor names it.
    worker = start(service, "checkpoint_stored:2:SIGKILL", ALWAYS)
    assert worker.process.wait(timeout=120) == -signal.SIGKILL
    assert resumed_at(worker) == (reached["epoch"], reached["epoch_steps"])
    assert newest()["steps"] == reached["steps"] + 1
    reached = newest()
    prefix = keys.checkpoint_prefix(tenant_id, job.id)
    stored = {found.key for found in objects.list("darkroom", prefix)}
    assert reached["key"] in stored
    assert max(stored) > reached["key"], "one more was stored than was named"

    worker = start(service)
    ended = outcome(service, database, tenant_id, job)
    assert resumed_at(worker) == (reached["epoch"], reached["epoch_steps"])
    assert look_at_chunk(database, chunk_id).attempt == 4
    assert metrics(database, tenant_id, job)[: len(numbers)] == numbers
    # As the dispatcher does each minute; its own may have come first.
    tidy_checkpoints(database, objects, "darkroom")
    wait_until(lambda: not list(objects.list("darkroom", prefix)), "the checkpoints are deleted")

    undisturbed = outcome(service, database, tenant_id, submit(database, tenant_id, dataset))
    assert ended == undisturbed
    assert len(ended["metrics"]) == 6 * RECIPE.epochs
    # Else it may take the training of the next test.
    assert worker.stop() == 0


def resumed_at(worker: WorkerHandle) -> tuple[int, int]:
    """Where the worker says that it went on, as epochs and steps of the next that were over."""
    for line in worker.log.read_text().splitlines():
        if '"training_resumed"' in line:
            said = json.loads(line)
            return said["epoch"], said["steps"]
    raise AssertionError(f"the worker resumed nothing: {worker.log.read_text()}")


def test_training_by_two_processes_ends_well_and_they_end_with_their_worker(
    service: Service, database: Database, tenant_id: str
) -> None:
    dataset = freeze_shapes(service, database, tenant_id)
    job = submit(database, tenant_id, dataset)
    worker = service.start_worker(
        "training",
        train_devices="2",
        worker_name="trainer",
        lease_seconds=60,
        torch_threads=1,
        decode_processes=1,
    )
    (rank,) = wait_until(lambda: ranks_of(worker.process.pid), "another process", seconds=120)
    ended = service.wait_for_end(tenant_id, job.id, seconds=180)
    assert ended.state == JobState.SUCCEEDED, ended.error
    assert not is_alive(rank)
    with database.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, str(ended.model_version_id))
    assert version.lineage["devices"] == 2
    assert len(metrics(database, tenant_id, job)) == 8 * RECIPE.epochs

    job = submit(database, tenant_id, dataset)
    (rank,) = wait_until(lambda: ranks_of(worker.process.pid), "another process", seconds=120)
    worker.kill()
    wait_until(lambda: not is_alive(rank), "the other process has ended")
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job.id)


def ranks_of(pid: int) -> list[int]:
    """Processes that a worker has started to train with it."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in threads for child in read(each).split() if is_alive(int(child))]


def is_alive(pid: int) -> bool:
    """Whether it still is such a process."""
    return "worker.training.follow" in read(Path(f"/proc/{pid}/cmdline"))


def read(path: Path) -> str:
    """What the kernel tells; nothing of a thread or process that has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
