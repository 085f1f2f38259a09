"""Weights at rest: sealed wherever they lie, and refused where anything of them was touched."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import SecretStr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sqlalchemy import select, update

from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_uploads
from app.dispatch.cleanup_weights import give_up_weights
from app.errors import InvalidInputError, ObjectMissingError
from app.jobs.states import ChunkTask, JobState
from app.jobs.submit import submit_import, submit_predict
from app.jobs.tables import Item, Job
from app.keyring import Keyring, new_key_text
from app.locations import ANYWHERE
from app.models.tables import ModelVersion
from app.models.weights import read_weights, stored_weights
from app.queues.names import Queue
from app.sealing.bundle import SealedDamagedError, is_bundle
from app.settings import Settings
from app.stack.s3 import LocalS3
from app.storage.s3 import ObjectStore
from app.uploads.receive import begin_upload, finish_upload, receive_bytes
from app.uploads.tables import Upload, UploadKind, UploadState
from tests.doors import ring, worker_inside
from tests.factories import make_tenant, register_weights
from tests.jobs import chunk_ids, look_at_job, make_old
from tests.unit.pictures import encode, picture, small_spec
from worker.process import WorkerProcess
from worker.recognisers.cnn import SmallCnn
from worker.tasks.import_weights import import_chunk
from worker.tasks.plan import plan_chunk
from worker.tasks.predict import predict_chunk

BUCKET = "darkroom"
CLASSES = list(small_spec().classes)
NEEDLE_BYTES = 64


@pytest.fixture(scope="module")
def world(
    settings: Settings, database: Database, objects: ObjectStore, tmp_path_factory: Any
) -> Iterator[World]:
    """A worker in this process, and a picture for it to recognise."""
    process = worker_inside(
        settings.model_copy(
            update={
                "lease_seconds": 600,
                "device": "cpu",
                "decode_processes": 1,
                "cache_dir": tmp_path_factory.mktemp("cache"),
            }
        ),
        Queue.INFERENCE,
        database,
    )
    objects.ensure_bucket(BUCKET)
    objects.ensure_bucket("photos")
    objects.put("photos", "sealed.png", encode(picture()))
    yield World(process, database, objects)
    if process._decoder is not None:
        process._decoder.close()


class World:
    """Imports weights and recognises with them, in this process and on the real parts."""

    def __init__(self, process: WorkerProcess, db: Database, store: ObjectStore) -> None:
        self.process, self.db, self.store = process, db, store

    @property
    def cache(self) -> Path:
        """Where this worker keeps what it fetched."""
        return self.process.settings.cache_dir / "weights"

    def forget(self) -> None:
        """Let go of every version in memory and on this disk, as a new worker has none."""
        for version_id in self.process.recognisers.version_ids():
            self.process.recognisers.forget(version_id)
        shutil.rmtree(self.cache, ignore_errors=True)

    def send(self, tenant_id: str, content: bytes) -> str:
        """The id of an upload of weights."""
        with self.db.tenant(tenant_id) as session:
            upload = begin_upload(
                session, tenant_id, kind=UploadKind.WEIGHTS, filename="w.safetensors"
            )
        received = receive_bytes(self.store, BUCKET, upload.object_key, [content], max_bytes=10**9)
        with self.db.tenant(tenant_id) as session:
            finish_upload(
                session,
                tenant_id,
                upload.id,
                size_bytes=received.size_bytes,
                sha256=received.sha256,
            )
        return upload.id

    def submit_import(self, tenant_id: str, upload_id: str, **words: Any) -> str:
        """The id of an import job."""
        options = {"model": "net", "arch": "small_cnn", "classes": CLASSES, **words}
        with self.db.tenant(tenant_id) as session:
            return submit_import(session, tenant_id, weights=upload_id, **options).id

    def run_import(self, tenant_id: str, job_id: str) -> Job:
        """The job after this worker has answered its bell."""
        (chunk,) = chunk_ids(self.db, job_id)
        ring(self.process, tenant_id, chunk, import_chunk, ChunkTask.IMPORT)
        return look_at_job(self.db, tenant_id, job_id)

    def add(self, tenant_id: str, content: bytes) -> ModelVersion:
        """A version with these weights."""
        upload_id = self.send(tenant_id, content)
        job = self.run_import(tenant_id, self.submit_import(tenant_id, upload_id))
        assert job.state == JobState.SUCCEEDED, job.error
        return self.version(str(job.model_version_id))

    def version(self, version_id: str) -> ModelVersion:
        """The version's row."""
        with self.db.system() as session:
            return session.get_one(ModelVersion, version_id)

    def change(self, version_id: str, **values: Any) -> None:
        """What an attacker writes who has the database."""
        with self.db.system() as session:
            session.execute(
                update(ModelVersion).where(ModelVersion.id == version_id).values(**values)
            )

    def recognise(self, tenant_id: str, version_id: str) -> Job:
        """A job over one picture, after its chunks were done."""
        with self.db.tenant(tenant_id) as session:
            job_id = submit_predict(
                session,
                tenant_id,
                source={"items": [{"key": "s3://photos/sealed.png"}]},
                model=version_id,
                options={"top_k": 3, "threshold": 0.0, "activation": "softmax"},
                own_bucket=BUCKET,
                locations=ANYWHERE,
            ).id
        (plan,) = chunk_ids(self.db, job_id)
        ring(self.process, tenant_id, plan, plan_chunk, ChunkTask.PLAN)
        for chunk in chunk_ids(self.db, job_id):
            if chunk != plan:
                ring(self.process, tenant_id, chunk, predict_chunk, ChunkTask.PREDICT)
        return look_at_job(self.db, tenant_id, job_id)

    def answers(self, job: Job) -> list[Item]:
        """Every stored item of a job."""
        with self.db.system() as session:
            return list(session.scalars(select(Item).where(Item.job_id == job.id)))

    def assert_refused(self, tenant_id: str, version_id: str, code: str) -> Job:
        """A job with this version fails by its name at the first try, and nothing is answered."""
        job = self.recognise(tenant_id, version_id)
        assert job.state == JobState.FAILED
        assert job.error is not None
        assert job.error["code"] == code
        assert self.answers(job) == []
        assert version_id not in self.process.warm_versions()
        return job


def weights(seed: int = 0) -> bytes:
    """A weights file of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return save(SmallCnn(3).state_dict())


def needles(content: bytes) -> list[bytes]:
    """Some of the numbers in a weights file, which stand nowhere else by chance."""
    return [content[at : at + NEEDLE_BYTES] for at in range(1000, len(content) - 100, 997)]


def holding(folder: Path, content: bytes, since: float = 0) -> list[Path]:
    """Files under a folder, changed ``since`` then, with numbers of a weights file in clear."""
    assert folder.is_dir()
    wanted = needles(content)
    assert len(wanted) > 50
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_ctime >= since:
            body = path.read_bytes()
            if any(needle in body for needle in wanted):
                found.append(path)
    return found


def test_imported_weights_lie_nowhere_in_clear_once_the_import_is_done(
    world: World, tenant_id: str, s3: LocalS3
) -> None:
    # What was written before cannot hold what is only made now.
    began = time.time() - 1
    content = weights(1)
    upload_id = world.send(tenant_id, content)
    # The test sees what it looks for: until the import has ended the file is there.
    assert holding(s3.objects_dir, content, began)
    job = world.run_import(tenant_id, world.submit_import(tenant_id, upload_id))
    assert job.state == JobState.SUCCEEDED, job.error
    version = world.version(str(job.model_version_id))
    assert version.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert version.weights_bytes == len(content)
    body = world.store.read(BUCKET, str(version.weights_key))
    assert is_bundle(body)
    assert version.sealed_sha256 == hashlib.sha256(body).hexdigest()
    assert world.recognise(tenant_id, version.id).state == JobState.SUCCEEDED
    assert [path.suffix for path in world.cache.iterdir()] == [".sealed"]
    assert holding(s3.objects_dir, content, began) == []
    assert holding(world.process.settings.cache_dir, content) == []


def test_sealed_object_is_no_safetensors_file(world: World, tenant_id: str, tmp_path: Path) -> None:
    version = world.add(tenant_id, weights(2))
    path = tmp_path / "w.safetensors"
    path.write_bytes(world.store.read(BUCKET, str(version.weights_key)))
    with pytest.raises(SafetensorError):
        safe_open(path, framework="pt")


def test_sealed_weights_answer_as_the_same_weights_in_clear_of_an_earlier_release(
    world: World, tenant_id: str
) -> None:
    content = weights(3)
    sealed = world.add(tenant_id, content)
    plain = register_weights(
        world.db, world.store, BUCKET, tenant_id, "plain", small_spec(), content
    )
    jobs = [world.recognise(tenant_id, version) for version in (sealed.id, plain)]
    (first,), (second,) = (world.answers(job) for job in jobs)
    assert first.prediction == second.prediction
    assert first.prediction


def flip(body: bytes) -> bytes:
    return body[:-40] + bytes([body[-40] ^ 1]) + body[-39:]


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


@pytest.mark.parametrize("spoil", [flip, cut, lambda _: b"", lambda _: weights(4)])
def test_touched_object_is_refused_by_its_name_and_nothing_is_answered(
    world: World, tenant_id: str, spoil: Any
) -> None:
    version = world.add(tenant_id, weights(4))
    key = str(version.weights_key)
    whole = world.store.read(BUCKET, key)
    world.store.put(BUCKET, key, spoil(whole))
    world.forget()
    world.assert_refused(tenant_id, version.id, "weights_sealed_damaged")
    assert list(world.cache.iterdir()) == []
    # Only what was touched was wrong: as it was stored, it serves.
    world.store.put(BUCKET, key, whole)
    assert world.recognise(tenant_id, version.id).state == JobState.SUCCEEDED


@pytest.mark.parametrize("owner", ["same tenant", "another tenant"])
def test_exchanged_objects_are_refused(world: World, tenant_id: str, owner: str) -> None:
    other_tenant = tenant_id if owner == "same tenant" else make_tenant(world.db)
    mine, other = world.add(tenant_id, weights(5)), world.add(other_tenant, weights(6))
    keys = [str(mine.weights_key), str(other.weights_key)]
    bodies = [world.store.read(BUCKET, key) for key in keys]
    for key, body in zip(keys, reversed(bodies), strict=True):
        world.store.put(BUCKET, key, body)
    world.forget()
    world.assert_refused(tenant_id, mine.id, "weights_sealed_damaged")
    world.assert_refused(other_tenant, other.id, "weights_sealed_damaged")


def test_whoever_rewrites_the_row_too_brings_no_other_weights_under_a_version(
    world: World, tenant_id: str
) -> None:
    mine, other = world.add(tenant_id, weights(7)), world.add(tenant_id, weights(8))
    there = {"weights_key": other.weights_key, "sealed_sha256": other.sealed_sha256}
    digest = {"weights_sha256": other.weights_sha256}
    world.forget()
    # The other's object, whole and with the digest that the row names.
    world.change(mine.id, **there)
    world.assert_refused(tenant_id, mine.id, "weights_sealed_damaged")
    # With the other's digest in clear.
    world.change(mine.id, **there, **digest)
    world.assert_refused(tenant_id, mine.id, "weights_sealed_damaged")
    # With its data key too, which is bound to the other version.
    world.change(mine.id, **there, **digest, sealed_key=other.sealed_key)
    world.assert_refused(tenant_id, mine.id, "seal_broken")
    # In clear: then it must have the digest of the weights, which nobody can make anew.
    world.change(mine.id, sealed_sha256=None, weights_sha256=mine.weights_sha256)
    assert world.recognise(tenant_id, mine.id).state != JobState.SUCCEEDED


def test_weights_in_clear_are_refused_where_only_sealed_ones_may_be_used(
    world: World, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, forged = world.add(tenant_id, weights(14)), weights(15)
    world.forget()
    # Whoever has database and bucket: other weights, and a row that fits them.
    world.store.put(BUCKET, str(version.weights_key), forged)
    world.change(
        version.id,
        sealed_sha256=None,
        weights_sha256=hashlib.sha256(forged).hexdigest(),
        weights_bytes=len(forged),
    )
    strict = world.process.settings.model_copy(update={"sealed_only": True})
    with monkeypatch.context() as patch:
        patch.setattr(world.process, "settings", strict)
        world.assert_refused(tenant_id, version.id, "weights_not_sealed")
        sealed = world.add(tenant_id, weights(16))
        assert world.recognise(tenant_id, sealed.id).state == JobState.SUCCEEDED
    # An operator who has not set it yet still serves versions of earlier releases.
    assert world.recognise(tenant_id, version.id).state == JobState.SUCCEEDED


def test_object_cut_at_a_frame_is_refused_whatever_digest_the_row_names(
    world: World, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.sealing import bundle

    seal = bundle.seal
    monkeypatch.setattr("worker.tasks.sealed.seal", lambda *words: seal(*words, frame_bytes=4096))
    version = world.add(tenant_id, weights(9))
    key = str(version.weights_key)
    body = world.store.read(BUCKET, key)[: 28 + 10 * (4096 + 16)]
    world.store.put(BUCKET, key, body)
    world.change(version.id, sealed_sha256=hashlib.sha256(body).hexdigest())
    world.forget()
    world.assert_refused(tenant_id, version.id, "weights_sealed_damaged")


def test_damaged_local_copy_is_fetched_again(world: World, tenant_id: str) -> None:
    version = world.add(tenant_id, weights(10))
    world.forget()
    copy = world.cache / f"{version.sealed_sha256}.sealed"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a bad sector")
    assert world.recognise(tenant_id, version.id).state == JobState.SUCCEEDED
    assert copy.read_bytes() == world.store.read(BUCKET, str(version.weights_key))


def test_version_whose_sealing_key_is_gone_says_so_and_serves_once_it_is_back(
    world: World, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = world.add(tenant_id, weights(11))
    world.forget()
    other = world.process.settings.model_copy(
        update={"sealing_keys": SecretStr(new_key_text("other"))}
    )
    with monkeypatch.context() as patch:
        patch.setattr(world.process, "keyring", Keyring.from_settings(other))
        job = world.assert_refused(tenant_id, version.id, "sealing_key_missing")
        assert "'first-" in (job.error or {})["detail"]
    assert world.recognise(tenant_id, version.id).state == JobState.SUCCEEDED


def test_weights_are_read_in_clear_as_a_stream_for_whoever_may_have_them(
    world: World, tenant_id: str
) -> None:
    content = weights(12)
    version = world.add(tenant_id, content)
    stored = stored_weights(version)

    def read() -> bytes:
        keyring = world.process.keyring
        return b"".join(read_weights(world.store, BUCKET, keyring, stored, sealed_only=True))

    assert read() == content
    world.store.put(BUCKET, stored.object_key, cut(world.store.read(BUCKET, stored.object_key)))
    with pytest.raises(SealedDamagedError):
        read()


def upload_of(world: World, upload_id: str) -> Upload:
    with world.db.system() as session:
        return session.get_one(Upload, upload_id)


def assert_gone(world: World, upload_id: str) -> None:
    with pytest.raises(ObjectMissingError):
        world.store.head(BUCKET, upload_of(world, upload_id).object_key)


def test_sent_file_is_deleted_with_its_import_and_cannot_be_imported_again(
    world: World, tenant_id: str
) -> None:
    upload_id = world.send(tenant_id, weights(13))
    assert world.run_import(tenant_id, world.submit_import(tenant_id, upload_id)).error is None
    assert upload_of(world, upload_id).state == UploadState.IMPORTED
    assert_gone(world, upload_id)
    with pytest.raises(InvalidInputError) as caught:
        world.submit_import(tenant_id, upload_id)
    assert caught.value.code == "upload_imported"


def test_file_whose_import_failed_stays_for_another_and_goes_in_the_end(
    world: World, tenant_id: str
) -> None:
    upload_id = world.send(tenant_id, weights(14))
    wrong = world.submit_import(tenant_id, upload_id, classes=["a", "b"])
    job = world.run_import(tenant_id, wrong)
    assert (job.error or {})["code"] == "weights_mismatch"
    assert upload_of(world, upload_id).state == UploadState.READY
    give_up_weights(world.db, upload_days=7)
    assert upload_of(world, upload_id).state == UploadState.READY
    make_old(world.db, Upload, "created_at", 8 * 24, upload_id)
    right = world.submit_import(tenant_id, upload_id)
    # An open job wants it, however old it is.
    give_up_weights(world.db, upload_days=7)
    assert upload_of(world, upload_id).state == UploadState.READY
    assert world.run_import(tenant_id, right).state == JobState.SUCCEEDED
    assert_gone(world, upload_id)


def test_file_that_no_import_took_is_deleted_after_its_days(world: World, tenant_id: str) -> None:
    upload_id = world.send(tenant_id, weights(15))
    make_old(world.db, Upload, "created_at", 8 * 24, upload_id)
    give_up_weights(world.db, upload_days=7)
    assert upload_of(world, upload_id).state == UploadState.FAILED
    tidy_uploads(world.db, world.store, BUCKET)
    assert_gone(world, upload_id)


def test_file_of_two_open_imports_is_deleted_by_the_last(world: World, tenant_id: str) -> None:
    upload_id = world.send(tenant_id, weights(16))
    first, second = (world.submit_import(tenant_id, upload_id) for _ in range(2))
    assert world.run_import(tenant_id, first).state == JobState.SUCCEEDED
    assert upload_of(world, upload_id).state == UploadState.READY
    assert world.run_import(tenant_id, second).state == JobState.SUCCEEDED
    assert upload_of(world, upload_id).state == UploadState.IMPORTED
    assert_gone(world, upload_id)


def test_import_that_lost_its_file_to_another_says_so(world: World, tenant_id: str) -> None:
    upload_id = world.send(tenant_id, weights(17))
    late = world.submit_import(tenant_id, upload_id)
    with world.db.system() as session:
        session.execute(
            update(Upload).where(Upload.id == upload_id).values(state=UploadState.IMPORTED)
        )
    job = world.run_import(tenant_id, late)
    assert job.state == JobState.FAILED
    assert (job.error or {})["code"] == "upload_imported"


def test_file_that_an_earlier_release_imported_and_kept_is_deleted(
    world: World, tenant_id: str
) -> None:
    upload_id = world.send(tenant_id, weights(18))
    assert world.run_import(tenant_id, world.submit_import(tenant_id, upload_id)).error is None
    upload = upload_of(world, upload_id)
    world.store.put(BUCKET, upload.object_key, b"as it was sent")
    with world.db.system() as session:
        session.execute(
            update(Upload).where(Upload.id == upload_id).values(state=UploadState.READY)
        )
    make_old(world.db, Upload, "created_at", 2, upload_id)
    give_up_weights(world.db, upload_days=7)
    assert upload_of(world, upload_id).state == UploadState.IMPORTED
    tidy_uploads(world.db, world.store, BUCKET)
    assert_gone(world, upload_id)
