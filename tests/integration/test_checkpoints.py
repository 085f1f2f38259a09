"""Checkpoints of one attempt in this process: what is stored, named, refused and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import psycopg
import pytest
from sqlalchemy import text, update

from app.db.hold import HOLD
from app.db.roles import SYSTEM_ROLE
from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_checkpoints
from app.dispatch.sweep import sweep_once
from app.errors import FencedError, StorageError
from app.jobs.cancel import cancel_job
from app.jobs.record import record_chunk
from app.jobs.states import JobState
from app.jobs.tables import Chunk
from app.keyring import Keyring, SealError
from app.sealing.bundle import is_bundle
from app.settings import Settings
from app.stack.postgres import LocalPostgres
from app.stack.snapshot import take_snapshot
from app.storage import keys
from app.storage.s3 import ObjectStore
from tests.jobs import lose_worker
from tests.trainings import BUCKET, Attempt, BrokenStore, Training, undisturbed
from tests.unit.pictures import assert_same, one_torch_thread
from worker.training.state import TrainingState


@pytest.fixture
def training(
    settings: Settings, quiet: Database, objects: ObjectStore, owner: str
) -> Iterator[Training]:
    """A training that no worker has begun."""
    with one_torch_thread():
        yield Training(settings, quiet, objects, owner)


def test_newest_checkpoint_and_the_one_before_are_kept_and_older_ones_deleted(
    training: Training,
) -> None:
    training.attempt().run()
    expected = [training.key(1, steps) for steps in (20, 15)]
    assert training.named() == expected
    assert training.stored() == sorted(expected)
    assert training.job().progress == {"step": 4, "steps": 4, "unit": "epoch"}


def test_next_attempt_goes_on_from_the_last_epoch_and_ends_the_same(training: Training) -> None:
    training.attempt().die_at(12)
    before = training.metrics()
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps == list(range(10, 20))
    after = training.metrics()
    assert after[:2] == before
    assert [step for step, *_ in after] == [1, 2, 3, 4]


def test_checkpoint_is_kept_within_an_epoch_once_its_time_has_come(training: Training) -> None:
    often = {"checkpoint_seconds": 1e-6}
    training.process.settings = training.process.settings.model_copy(update=often)
    training.attempt().die_at(7)
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    # Step 6 was the last before which there was something new to keep.
    assert second.steps[0] == 6


@pytest.mark.parametrize("event", ["stopping", "paused"])
def test_told_to_stop_it_keeps_what_it_has_learnt(training: Training, event: str) -> None:
    first = training.attempt()
    told = training.process.stopping if event == "stopping" else first.held.paused
    first.stop_at(8, told.set)
    told.clear()
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps == list(range(8, 20))


@pytest.mark.parametrize("event", ["cancelled", "lost"])
def test_cancelled_or_lost_it_keeps_nothing_more(training: Training, event: str) -> None:
    attempt = training.attempt()
    attempt.stop_at(8, getattr(attempt.held, event).set)
    assert training.named() == [training.key(1, 5)]
    assert training.stored() == training.named()


def test_fenced_attempt_names_nothing_and_leaves_nothing(training: Training) -> None:
    frozen = training.attempt()
    second: list[Attempt] = []

    def freeze() -> None:
        # The next attempt reaches step 12 while this one does not notice that it is late.
        second.append(training.next_attempt())
        second[0].die_at(12)

    frozen.stop_at(7, freeze, FencedError)
    expected = [training.key(2, 10), training.key(1, 5)]
    assert training.named() == expected
    assert training.stored() == sorted(expected)
    third = training.next_attempt()
    assert_same(third.run(), undisturbed())
    assert third.steps[0] == 10


@pytest.mark.parametrize(("damaged", "goes_on_from"), [(0, 10), (1, 5), (2, 0)])
def test_damaged_checkpoint_is_refused_and_the_one_before_taken(
    training: Training, damaged: int, goes_on_from: int
) -> None:
    training.attempt().die_at(12)
    for key in training.named()[:damaged]:
        training.damage(key)
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps[0] == goes_on_from


def test_missing_checkpoint_counts_as_a_damaged_one(training: Training) -> None:
    training.attempt().die_at(12)
    training.objects.delete(BUCKET, training.named()[:1])
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps[0] == 5


def test_checkpoints_lie_sealed(training: Training) -> None:
    weights = training.attempt().run()
    newest = training.named()[0]
    numbers = max(weights.values(), key=lambda tensor: tensor.numel()).numpy().tobytes()[:256]
    assert numbers in training.opened(newest)
    for key in training.stored():
        body = training.objects.read(BUCKET, key)
        assert is_bundle(body)
        assert numbers not in body


def test_exchanged_checkpoints_of_one_training_are_refused(training: Training) -> None:
    training.attempt().die_at(12)
    keys_, store = training.named(), training.objects
    bodies = [store.read(BUCKET, key) for key in keys_]
    for key, body in zip(keys_, reversed(bodies), strict=True):
        store.put(BUCKET, key, body)
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps[0] == 0


def test_checkpoint_in_clear_of_an_earlier_release_is_gone_on_from(training: Training) -> None:
    training.attempt().die_at(12)
    newest = training.named()[0]
    body = training.opened(newest)
    training.objects.put(BUCKET, newest, body)
    entry = {"key": newest, "sha256": sha256(body).hexdigest(), "steps": 10}
    with training.db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == training.chunk)
            .values(cursor={"checkpoints": [entry], "furthest": 10})
        )
    second = training.next_attempt()
    assert_same(second.run(), undisturbed())
    assert second.steps[0] == 10


def test_sealing_key_that_is_gone_is_no_reason_to_start_over(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.attempt().die_at(12)
    with monkeypatch.context() as patch:
        patch.setattr(training.process, "keyring", Keyring({"other": bytes(32)}))
        with pytest.raises(SealError) as caught:
            training.next_attempt().run()
    assert caught.value.code == "sealing_key_missing"
    assert len(training.named()) == 2
    assert training.next_attempt().run().keys() == undisturbed().keys()


def test_training_outlives_a_store_that_does_not_answer(training: Training) -> None:
    attempt = training.attempt()
    whole = training.process.store

    def look(state: TrainingState) -> None:
        broken = 7 <= state.steps < 17
        training.process.store = BrokenStore() if broken else whole  # type: ignore[assignment]

    assert_same(attempt.run(look), undisturbed())
    assert [step for step, *_ in training.metrics()] == [1, 2, 3, 4]
    assert training.named() == [training.key(1, n) for n in (20, 5)]


def test_store_that_does_not_answer_is_no_reason_to_start_over(
    training: Training,
) -> None:
    training.attempt().die_at(12)
    training.process.store = BrokenStore()  # type: ignore[assignment]
    with pytest.raises(StorageError):
        training.next_attempt().run()
    assert len(training.named()) == 2


def test_only_a_checkpoint_further_than_all_before_it_forgets_the_kills(
    training: Training,
) -> None:
    training.attempt().die_at(12)
    for key in training.named():
        training.damage(key)
    second = training.next_attempt()
    second.die_at(11)
    assert second.steps == list(range(11))
    assert training.kills() == 1
    third = training.next_attempt()
    assert training.kills() == 2
    third.die_at(16)
    assert training.kills() == 0


def test_backup_takes_the_checkpoints_of_an_open_training_along(
    training: Training, postgres: LocalPostgres
) -> None:
    attempt = training.attempt()
    attempt.run()
    url = postgres.url(SYSTEM_ROLE, postgres.secrets.system_password, database="quiet")
    with psycopg.connect(url) as connection:
        with take_snapshot(connection) as snapshot:
            for key in training.stored():
                assert snapshot.named[key] == sha256(training.objects.read(BUCKET, key)).hexdigest()
        with training.db.tenant(training.tenant_id) as session:
            record_chunk(session, attempt.lease, result={})
        with take_snapshot(connection) as snapshot:
            assert not snapshot.named.keys() & training.stored()


def test_checkpoints_of_an_ended_job_are_deleted_and_those_of_an_open_one_are_not(
    training: Training,
) -> None:
    attempt = training.attempt()
    attempt.run()
    # What a worker left that died between storing and naming.
    training.objects.put(BUCKET, training.key(0, 3), b"half")
    artifact = keys.artifact(training.tenant_id, training.job_id, "results.jsonl")
    training.objects.put(BUCKET, artifact, b"{}")
    assert tidy_checkpoints(training.db, training.objects, BUCKET) == 0
    assert len(training.stored()) == 3
    with training.db.tenant(training.tenant_id) as session:
        record_chunk(session, attempt.lease, result={})
    assert training.job().state == JobState.SUCCEEDED
    with pytest.raises(StorageError):
        tidy_checkpoints(training.db, BrokenStore(), BUCKET)  # type: ignore[arg-type]
    with training.db.system() as session:
        # As a backup does.
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": HOLD})
        assert tidy_checkpoints(training.db, training.objects, BUCKET) == 0
    assert len(training.stored()) == 3
    assert tidy_checkpoints(training.db, training.objects, BUCKET) == 1
    assert training.stored() == []
    assert training.objects.read(BUCKET, artifact) == b"{}"
    assert tidy_checkpoints(training.db, training.objects, BUCKET) == 0


def test_checkpoint_that_no_cursor_named_is_deleted_after_a_cancel_too(
    training: Training,
) -> None:
    training.attempt().die_at(2)
    training.objects.put(BUCKET, training.key(1, 2), b"half")
    with training.db.tenant(training.tenant_id) as session:
        cancel_job(session, training.tenant_id, training.job_id)
    lose_worker(training.db, training.chunk)
    sweep_once(training.db, max_kills=5)
    assert training.job().state == JobState.CANCELLED
    assert tidy_checkpoints(training.db, training.objects, BUCKET) == 1
    assert training.stored() == []
