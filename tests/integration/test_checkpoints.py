"""Checkpoints of one attempt in this process: what is stored, named, refused and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, text
from torch import Tensor

from app.db.hold import HOLD
from app.db.roles import SYSTEM_ROLE
from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_checkpoints
from app.dispatch.sweep import sweep_once
from app.errors import FencedError, StorageError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.record import record_chunk
from app.jobs.states import ChunkTask, JobKind, JobState
from app.models.spec import ModelSpec
from app.queues.names import Queue
from app.settings import Settings
from app.stack.postgres import LocalPostgres
from app.stack.snapshot import take_snapshot
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.training.metrics import log_metrics, read_metrics
from app.training.recipe import TrainingRecipe
from tests.doors import worker_inside
from tests.factories import add_job
from tests.jobs import add_chunk, claim, look_at_chunk, look_at_job, lose_worker
from tests.unit.pictures import assert_same, one_torch_thread, small_spec, stripes
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.checkpoints import Checkpoints
from worker.training.checkpoint import TrainingState
from worker.training.data import TrainingStoppedError
from worker.training.fit import fit

BUCKET = "darkroom"
#: Five steps in an epoch.
RECIPE = TrainingRecipe(epochs=4, train_batch_size=10, seed=3)
SPEC: ModelSpec = small_spec()
Look = Callable[[TrainingState], None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def process(settings: Settings, quiet: Database, objects: ObjectStore) -> WorkerProcess:
    """A training worker's inside that keeps a checkpoint at the end of epochs alone."""
    objects.ensure_bucket(BUCKET)
    seldom = settings.model_copy(update={"checkpoint_seconds": 1000})
    return worker_inside(seldom, Queue.TRAINING, quiet)


@pytest.fixture
def chunk(quiet: Database, owner: str) -> str:
    """The chunk of a fine-tuning."""
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, JobKind.FINETUNE)
        job.sealed_at = func.now()
        return add_chunk(session, job, ChunkTask.FINETUNE).id


def next_lease(db: Database, owner: str, chunk: str) -> Lease:
    """What the next worker gets once this one's lease has ended without a word."""
    lose_worker(db, chunk)
    return claim(db, owner, chunk, task=ChunkTask.FINETUNE)


class Attempt:
    """One attempt at the training; ``look`` is called before each step."""

    def __init__(self, process: WorkerProcess, lease: Lease) -> None:
        self.process = process
        self.lease = lease
        self.held = HeldLease(lease, process.stopping)
        self.steps: list[int] = []

    def run(self, look: Look = lambda _: None) -> dict[str, Tensor]:
        checkpoints = Checkpoints(self.process, self.held)

        def before_batch(state: TrainingState) -> None:
            look(state)
            checkpoints.before_batch(state)
            self.steps.append(state.steps)

        module = fit(
            SPEC,
            RECIPE,
            stripes(48),
            stripes(12, seed=1),
            device="cpu",
            on_begin=checkpoints.resume,
            before_batch=before_batch,
            on_epoch=lambda report, state: checkpoints.keep_epoch(
                state,
                lambda session: log_metrics(
                    session,
                    self.lease.tenant_id,
                    self.lease.job_id,
                    report.epoch,
                    {"train_loss": report.train_loss},
                ),
            ),
        )
        return module.state_dict()

    def die_at(self, steps: int) -> None:
        """Run as far as a kill before this step lets it come."""
        self.stop_at(steps, kill, _KilledError)

    def stop_at(
        self,
        steps: int,
        stop: Callable[[], Any],
        raised: type[Exception] = TrainingStoppedError,
    ) -> None:
        with pytest.raises(raised):
            self.run(lambda state: stop() if state.steps == steps else None)


class _KilledError(Exception):
    """Stands for a kill: nothing of ours runs after it."""


def kill() -> None:
    raise _KilledError


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Tensor]:
    """The weights of the same training when nothing happens to it."""
    with one_torch_thread():
        module = fit(
            SPEC,
            RECIPE,
            stripes(48),
            stripes(12, seed=1),
            device="cpu",
            on_epoch=lambda _report, _state: None,
        )
    return module.state_dict()


def stored(objects: ObjectStore, lease: Lease) -> list[str]:
    """Keys of the job's checkpoints that lie in the store."""
    prefix = keys.checkpoint_prefix(lease.tenant_id, lease.job_id)
    return sorted(found.key for found in objects.list(BUCKET, prefix))


def named(db: Database, lease: Lease) -> list[str]:
    """Keys that the chunk's cursor names, newest first."""
    cursor = look_at_chunk(db, lease.chunk_id).cursor
    return [entry["key"] for entry in (cursor or {})["checkpoints"]]


def test_newest_checkpoint_and_the_one_before_are_kept_and_older_ones_deleted(
    process: WorkerProcess, quiet: Database, objects: ObjectStore, owner: str, chunk: str
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    attempt.run()
    lease = attempt.lease
    expected = [keys.checkpoint(owner, lease.job_id, 1, steps) for steps in (20, 15)]
    assert named(quiet, lease) == expected
    assert stored(objects, lease) == sorted(expected)
    assert look_at_job(quiet, owner, lease.job_id).progress == {
        "step": 4,
        "steps": 4,
        "unit": "epoch",
    }


def test_next_attempt_goes_on_from_the_last_epoch_and_ends_the_same(
    process: WorkerProcess,
    quiet: Database,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(12)
    before = metrics(quiet, first.lease)
    second = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(second.run(), undisturbed)
    assert second.steps == list(range(10, 20))
    after = metrics(quiet, first.lease)
    assert after[:2] == before
    assert [step for step, *_ in after] == [1, 2, 3, 4]


def metrics(db: Database, lease: Lease) -> list[tuple[Any, ...]]:
    with db.tenant(lease.tenant_id) as session:
        points, _ = read_metrics(session, lease.tenant_id, lease.job_id)
    return [(point.step, point.name, point.value, point.recorded_at) for point in points]


def test_checkpoint_is_kept_within_an_epoch_once_its_time_has_come(
    process: WorkerProcess,
    quiet: Database,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
) -> None:
    process.settings = process.settings.model_copy(update={"checkpoint_seconds": 1e-6})
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(7)
    second = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(second.run(), undisturbed)
    # Step 6 was the last before which there was something new to keep.
    assert second.steps[0] == 6


@pytest.mark.parametrize("event", ["stopping", "paused"])
def test_told_to_stop_it_keeps_what_it_has_learnt(
    process: WorkerProcess,
    quiet: Database,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
    event: str,
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    told = process.stopping if event == "stopping" else first.held.paused
    first.stop_at(8, told.set)
    told.clear()
    second = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(second.run(), undisturbed)
    assert second.steps == list(range(8, 20))


@pytest.mark.parametrize("event", ["cancelled", "lost"])
def test_cancelled_or_lost_it_keeps_nothing_more(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    owner: str,
    chunk: str,
    event: str,
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    attempt.stop_at(8, getattr(attempt.held, event).set)
    assert named(quiet, attempt.lease) == [keys.checkpoint(owner, attempt.lease.job_id, 1, 5)]
    assert stored(objects, attempt.lease) == named(quiet, attempt.lease)


def test_fenced_attempt_names_nothing_and_leaves_nothing(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
) -> None:
    frozen = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    second: list[Attempt] = []

    def freeze() -> None:
        # The next attempt reaches step 12 while this one does not notice that it is late.
        second.append(Attempt(process, next_lease(quiet, owner, chunk)))
        second[0].die_at(12)

    frozen.stop_at(7, freeze, FencedError)
    lease = frozen.lease
    expected = [
        keys.checkpoint(owner, lease.job_id, 2, 10),
        keys.checkpoint(owner, lease.job_id, 1, 5),
    ]
    assert named(quiet, lease) == expected
    assert stored(objects, lease) == sorted(expected)
    third = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(third.run(), undisturbed)
    assert third.steps[0] == 10


def damage(objects: ObjectStore, key: str) -> None:
    body = bytearray(objects.read(BUCKET, key))
    body[-1] ^= 1
    objects.put(BUCKET, key, bytes(body))


@pytest.mark.parametrize(("damaged", "goes_on_from"), [(0, 10), (1, 5), (2, 0)])
def test_damaged_checkpoint_is_refused_and_the_one_before_taken(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
    damaged: int,
    goes_on_from: int,
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(12)
    for key in named(quiet, first.lease)[:damaged]:
        damage(objects, key)
    second = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(second.run(), undisturbed)
    assert second.steps[0] == goes_on_from


def test_missing_checkpoint_counts_as_a_damaged_one(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(12)
    objects.delete(BUCKET, named(quiet, first.lease)[:1])
    second = Attempt(process, next_lease(quiet, owner, chunk))
    assert_same(second.run(), undisturbed)
    assert second.steps[0] == 5


class BrokenStore:
    """The object store, when it does not answer."""

    def __getattr__(self, name: str) -> Any:
        raise StorageError("the store does not answer")


def test_training_outlives_a_store_that_does_not_answer(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    owner: str,
    chunk: str,
    undisturbed: dict[str, Tensor],
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    whole = process.store

    def look(state: TrainingState) -> None:
        broken = 7 <= state.steps < 17
        process.store = BrokenStore() if broken else whole  # type: ignore[assignment]

    assert_same(attempt.run(look), undisturbed)
    assert [step for step, *_ in metrics(quiet, attempt.lease)] == [1, 2, 3, 4]
    lease = attempt.lease
    assert named(quiet, lease) == [keys.checkpoint(owner, lease.job_id, 1, n) for n in (20, 5)]


def test_store_that_does_not_answer_is_no_reason_to_start_over(
    process: WorkerProcess, quiet: Database, owner: str, chunk: str
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(12)
    process.store = BrokenStore()  # type: ignore[assignment]
    with pytest.raises(StorageError):
        Attempt(process, next_lease(quiet, owner, chunk)).run()
    assert len(named(quiet, first.lease)) == 2


def test_only_a_checkpoint_further_than_all_before_it_forgets_the_kills(
    process: WorkerProcess, quiet: Database, objects: ObjectStore, owner: str, chunk: str
) -> None:
    first = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    first.die_at(12)
    for key in named(quiet, first.lease):
        damage(objects, key)
    second = Attempt(process, next_lease(quiet, owner, chunk))
    second.die_at(11)
    assert second.steps == list(range(11))
    assert look_at_chunk(quiet, chunk).kills == 1
    third = Attempt(process, next_lease(quiet, owner, chunk))
    assert look_at_chunk(quiet, chunk).kills == 2
    third.die_at(16)
    assert look_at_chunk(quiet, chunk).kills == 0


def test_backup_takes_the_checkpoints_of_an_open_training_along(
    process: WorkerProcess,
    quiet: Database,
    objects: ObjectStore,
    postgres: LocalPostgres,
    owner: str,
    chunk: str,
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    attempt.run()
    url = postgres.url(SYSTEM_ROLE, postgres.secrets.system_password, database="quiet")
    with psycopg.connect(url) as connection:
        with take_snapshot(connection) as snapshot:
            for key in stored(objects, attempt.lease):
                assert snapshot.named[key] == sha256(objects.read(BUCKET, key)).hexdigest()
        with quiet.tenant(owner) as session:
            record_chunk(session, attempt.lease, result={})
        with take_snapshot(connection) as snapshot:
            assert not snapshot.named.keys() & stored(objects, attempt.lease)


def test_checkpoints_of_an_ended_job_are_deleted_and_those_of_an_open_one_are_not(
    process: WorkerProcess, quiet: Database, objects: ObjectStore, owner: str, chunk: str
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    attempt.run()
    lease = attempt.lease
    # What a worker left that died between storing and naming.
    objects.put(BUCKET, keys.checkpoint(owner, lease.job_id, 0, 3), b"half")
    artifact = keys.artifact(owner, lease.job_id, "results.jsonl")
    objects.put(BUCKET, artifact, b"{}")
    assert tidy_checkpoints(quiet, objects, BUCKET) == 0
    assert len(stored(objects, lease)) == 3
    with quiet.tenant(owner) as session:
        record_chunk(session, lease, result={})
    assert look_at_job(quiet, owner, lease.job_id).state == JobState.SUCCEEDED
    with pytest.raises(StorageError):
        tidy_checkpoints(quiet, BrokenStore(), BUCKET)  # type: ignore[arg-type]
    with quiet.system() as session:
        # As a backup does.
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": HOLD})
        assert tidy_checkpoints(quiet, objects, BUCKET) == 0
    assert len(stored(objects, lease)) == 3
    assert tidy_checkpoints(quiet, objects, BUCKET) == 1
    assert stored(objects, lease) == []
    assert objects.read(BUCKET, artifact) == b"{}"
    assert tidy_checkpoints(quiet, objects, BUCKET) == 0


def test_checkpoint_that_no_cursor_named_is_deleted_after_a_cancel_too(
    process: WorkerProcess, quiet: Database, objects: ObjectStore, owner: str, chunk: str
) -> None:
    attempt = Attempt(process, claim(quiet, owner, chunk, task=ChunkTask.FINETUNE))
    attempt.die_at(2)
    lease = attempt.lease
    objects.put(BUCKET, keys.checkpoint(owner, lease.job_id, 1, 2), b"half")
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, lease.job_id)
    lose_worker(quiet, chunk)
    sweep_once(quiet, max_kills=5)
    assert look_at_job(quiet, owner, lease.job_id).state == JobState.CANCELLED
    assert tidy_checkpoints(quiet, objects, BUCKET) == 1
    assert stored(objects, lease) == []
