"""A store that is away for longer than a fetch waits costs a chunk time, and no item."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.db.session import Database
from app.errors import StorageAwayError, StorageError
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk
from app.queues.names import Queue
from app.settings import Settings
from tests.doors import worker_inside
from tests.factories import add_version
from tests.jobs import assert_closed, failed_items, look_at_chunk, make_due, make_job
from tests.unit.pictures import DictStore, encode, picture, small_recogniser
from worker.pipeline.values import ByteStream
from worker.process import WorkerProcess
from worker.tasks import predict
from worker.tasks.door import open_door


class FailingStore(DictStore):
    """Fails for the keys it is told, or for all; ``bucket_exists`` answers while it is not away."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.is_away = False
        self.bad: set[str] = set()
        self.refused: set[str] = set()

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> ByteStream:
        if self.is_away or key in self.bad:
            raise StorageAwayError(f"{key} was not given")
        if key in self.refused:
            raise StorageError(f"{key} was refused")
        return super().open(bucket, key, offset, length)

    def bucket_exists(self, _bucket: str) -> bool:
        if self.is_away:
            raise StorageAwayError("the store does not answer")
        return True


@pytest.fixture
def store() -> FailingStore:
    """Twelve pictures."""
    return FailingStore({f"{number}.png": encode(picture(number)) for number in range(12)})


@pytest.fixture
def process(
    settings: Settings, quiet: Database, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerProcess]:
    """A worker's inside that recognises with a small network and reads from the failing store."""
    recogniser = small_recogniser()
    monkeypatch.setattr(predict, "warm_recogniser", lambda *_: recogniser)
    impatient = {"max_kills": 3, "outage_seconds": 0, "decode_processes": 1}
    process = worker_inside(settings.model_copy(update=impatient), Queue.INFERENCE, quiet)
    process.store = store  # type: ignore[assignment]
    yield process
    process.decoder.close()


def add_pictures(db: Database, tenant_id: str) -> tuple[str, str]:
    """A job over all twelve in one chunk, and the chunk."""
    with db.tenant(tenant_id) as session:
        version = add_version(session, tenant_id)
    job_id, (chunk,) = make_job(db, tenant_id, 12, model_version_id=version.id)
    return job_id, chunk


def ring(process: WorkerProcess, db: Database, tenant_id: str, chunk_id: str) -> Chunk:
    """Answer a bell for the chunk, which is due; its row afterwards."""
    make_due(db, chunk_id)
    open_door(
        process, ChunkTask.PREDICT, predict.predict_chunk, chunk_id=chunk_id, tenant_id=tenant_id
    )
    return look_at_chunk(db, chunk_id)


def failed_ordinals(db: Database, job_id: str) -> list[int]:
    return [item.ordinal for item in failed_items(db, job_id)]


def test_chunk_of_which_nothing_could_be_read_waits_and_then_succeeds(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    job_id, chunk = add_pictures(quiet, owner)
    store.is_away = True
    row = ring(process, quiet, owner, chunk)
    assert (row.state, row.faults, row.kills) == (ChunkState.PENDING, 1, 0)
    assert row.running_at is not None
    assert row.due_at > row.running_at
    store.is_away = False
    ring(process, quiet, owner, chunk)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_store_that_goes_in_the_middle_keeps_what_was_read_and_the_rest_waits(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    job_id, chunk = add_pictures(quiet, owner)
    store.bad = {f"{number}.png" for number in range(5, 12)}
    row = ring(process, quiet, owner, chunk)
    assert (row.state, row.lo, row.hi, row.faults) == (ChunkState.PENDING, 5, 12, 1)
    store.bad = set()
    ring(process, quiet, owner, chunk)
    assert assert_closed(quiet, owner, job_id, JobState.SUCCEEDED).succeeded == 12


def test_store_that_was_away_for_a_moment_costs_no_image_in_the_middle(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    job_id, chunk = add_pictures(quiet, owner)
    store.bad = {"4.png"}
    row = ring(process, quiet, owner, chunk)
    assert (row.state, row.lo, row.hi, row.faults) == (ChunkState.PENDING, 4, 12, 1)
    store.bad = set()
    ring(process, quiet, owner, chunk)
    assert assert_closed(quiet, owner, job_id, JobState.SUCCEEDED).succeeded == 12


def test_many_objects_without_an_answer_are_asked_for_as_long_as_an_outage_may_last(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    process.settings = process.settings.model_copy(update={"outage_seconds": 120})
    job_id, chunk = add_pictures(quiet, owner)
    store.is_away = True
    for faults in (1, 2, 3, 4):
        assert ring(process, quiet, owner, chunk).faults == faults
    store.is_away = False
    ring(process, quiet, owner, chunk)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_object_that_the_store_refuses_is_its_item_s_error_at_once(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    job_id, chunk = add_pictures(quiet, owner)
    store.refused = {"4.png"}
    ring(process, quiet, owner, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, failed_ordinals(quiet, job_id)) == (11, [4])


@pytest.mark.parametrize("bad", [4, 11])
def test_single_object_that_fails_again_and_again_in_a_store_that_answers_is_its_item_s_error(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore, bad: int
) -> None:
    process.settings = process.settings.model_copy(update={"outage_seconds": 3600})
    job_id, chunk = add_pictures(quiet, owner)
    store.bad = {f"{bad}.png"}
    for faults in (1, 2):
        assert ring(process, quiet, owner, chunk).faults == faults
    ring(process, quiet, owner, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, failed_ordinals(quiet, job_id)) == (11, [bad])


def test_objects_that_fail_at_every_try_are_their_items_errors_in_the_end(
    process: WorkerProcess, quiet: Database, owner: str, store: FailingStore
) -> None:
    job_id, chunk = add_pictures(quiet, owner)
    store.bad = {f"{number}.png" for number in range(12)}
    for faults in (1, 2):
        assert ring(process, quiet, owner, chunk).faults == faults
    ring(process, quiet, owner, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.error or {})["code"] == "all_items_failed"
    assert failed_ordinals(quiet, job_id) == list(range(12))
