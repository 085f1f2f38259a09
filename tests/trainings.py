"""A small training in the test's own process, attempt by attempt, with its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from sqlalchemy import func
from torch import Tensor

from app.db.session import Database
from app.errors import StorageError
from app.jobs.claim import Lease
from app.jobs.states import ChunkTask, JobKind
from app.jobs.tables import Job
from app.models.register import announce_version
from app.models.spec import ModelSpec
from app.models.weights import version_data_key
from app.queues.names import Queue
from app.sealing.bundle import Subject, unseal
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.training.metrics import log_metrics, read_metrics
from app.training.recipe import TrainingRecipe
from tests.doors import worker_inside
from tests.factories import add_job
from tests.jobs import add_chunk, claim, look_at_chunk, look_at_job, lose_worker
from tests.unit.pictures import one_torch_thread, small_spec, stripes
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.checkpoints import Checkpoints
from worker.training.data import TrainingStoppedError
from worker.training.fit import EpochReport, fit
from worker.training.state import TrainingState

BUCKET = "darkroom"
#: Five steps in an epoch.
RECIPE = TrainingRecipe(epochs=4, train_batch_size=10, seed=3)
SPEC: ModelSpec = small_spec()
Look = Callable[[TrainingState], None]


class Training:
    """The one chunk of a fine-tuning, in a worker that keeps checkpoints at the end of epochs."""

    def __init__(
        self, settings: Settings, db: Database, objects: ObjectStore, tenant_id: str
    ) -> None:
        objects.ensure_bucket(BUCKET)
        seldom = settings.model_copy(update={"checkpoint_seconds": 1000})
        self.process = worker_inside(seldom, Queue.TRAINING, db)
        self.db, self.objects, self.tenant_id = db, objects, tenant_id
        with db.tenant(tenant_id) as session:
            job = add_job(session, tenant_id, JobKind.FINETUNE)
            job.sealed_at = func.now()
            version = announce_version(
                session,
                tenant_id,
                model="taught",
                arch=SPEC.arch,
                arch_options={},
                lineage={},
                job_id=job.id,
            )
            job.model_version_id = version.id
            self.job_id = job.id
            self.chunk = add_chunk(session, job, ChunkTask.FINETUNE).id

    def attempt(self) -> Attempt:
        """What a worker does that gets the chunk."""
        lease = claim(self.db, self.tenant_id, self.chunk, task=ChunkTask.FINETUNE)
        return Attempt(self.process, lease)

    def next_attempt(self) -> Attempt:
        """What the next one does, once this one's lease has ended without a word."""
        lose_worker(self.db, self.chunk)
        return self.attempt()

    def job(self) -> Job:
        """The job's row now."""
        return look_at_job(self.db, self.tenant_id, self.job_id)

    def kills(self) -> int:
        """Kills that count against the chunk."""
        return look_at_chunk(self.db, self.chunk).kills

    def key(self, attempt: int, steps: int) -> str:
        """Where an attempt's checkpoint at a step lies."""
        return keys.checkpoint(self.tenant_id, self.job_id, attempt, steps)

    def stored(self) -> list[str]:
        """Keys of the job's checkpoints that lie in the store."""
        prefix = keys.checkpoint_prefix(self.tenant_id, self.job_id)
        return sorted(found.key for found in self.objects.list(BUCKET, prefix))

    def named(self) -> list[str]:
        """Keys that the chunk's cursor names, newest first."""
        cursor = look_at_chunk(self.db, self.chunk).cursor
        return [entry["key"] for entry in (cursor or {})["checkpoints"]]

    def metrics(self) -> list[tuple[Any, ...]]:
        """Step, name, value and moment of every metric of the job."""
        with self.db.tenant(self.tenant_id) as session:
            points, _ = read_metrics(session, self.tenant_id, self.job_id)
        return [(point.step, point.name, point.value, point.recorded_at) for point in points]

    def opened(self, key: str) -> bytes:
        """A checkpoint in clear."""
        cursor = look_at_chunk(self.db, self.chunk).cursor or {}
        (entry,) = (entry for entry in cursor["checkpoints"] if entry["key"] == key)
        version_id = str(self.job().model_version_id)
        with self.db.tenant(self.tenant_id) as session:
            data_key, _ = version_data_key(
                session, self.process.keyring, self.tenant_id, version_id
            )
        subject = Subject(self.tenant_id, version_id, entry["plain_sha256"], f"checkpoint:{key}")
        with self.objects.open(BUCKET, key) as stream:
            return b"".join(unseal(stream, data_key, subject))

    def damage(self, key: str) -> None:
        """Turn one bit of a checkpoint."""
        body = bytearray(self.objects.read(BUCKET, key))
        body[-1] ^= 1
        self.objects.put(BUCKET, key, bytes(body))


class Attempt:
    """One attempt at the training; ``look`` is called before each step."""

    def __init__(self, process: WorkerProcess, lease: Lease) -> None:
        self.process = process
        self.lease = lease
        self.held = HeldLease(lease, process.stopping)
        self.steps: list[int] = []

    def run(self, look: Look = lambda _: None) -> dict[str, Tensor]:
        """The weights at the end."""
        checkpoints = Checkpoints(self.process, self.held)

        def before_step(state: TrainingState) -> None:
            look(state)
            checkpoints.before_step(state)
            self.steps.append(state.steps)

        def epoch_over(report: EpochReport, state: TrainingState) -> None:
            values = {"train_loss": report.train_loss}
            lease = self.lease
            checkpoints.keep_epoch(
                state,
                lambda session: log_metrics(
                    session, lease.tenant_id, lease.job_id, report.epoch, values
                ),
            )

        return _fit(on_begin=checkpoints.resume, before_step=before_step, on_epoch=epoch_over)

    def die_at(self, steps: int) -> None:
        """Run as far as a kill before this step lets it come."""
        self.stop_at(steps, _kill, _KilledError)

    def stop_at(
        self,
        steps: int,
        stop: Callable[[], Any],
        raised: type[Exception] = TrainingStoppedError,
    ) -> None:
        """Run until ``stop``, which is called before this step, makes it raise."""
        with pytest.raises(raised):
            self.run(lambda state: stop() if state.steps == steps else None)


class _KilledError(Exception):
    """Stands for a kill: nothing of ours runs after it."""


def _kill() -> None:
    raise _KilledError


@cache
def undisturbed() -> dict[str, Tensor]:
    """The weights of the same training when nothing happens to it."""
    with one_torch_thread():
        return _fit(on_epoch=lambda _report, _state: None)


def _fit(**hooks: Any) -> dict[str, Tensor]:
    images, tests = stripes(48), stripes(12, seed=1)
    return fit(SPEC, RECIPE, images, tests, device="cpu", **hooks).module.state_dict()


class BrokenStore:
    """The object store, when it does not answer."""

    def __getattr__(self, name: str) -> Any:
        raise StorageError("the store does not answer")
