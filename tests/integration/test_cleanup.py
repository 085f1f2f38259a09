"""The clean-up on real parts: what nobody needs goes, what somebody needs stays, once or thrice."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from app.db.hold import HOLD
from app.db.session import Database
from app.dispatch import cleanup_objects, cleanup_rows
from app.dispatch.cleanup import Cleanup
from app.ids import new_id
from app.jobs.artifacts import add_artifact
from app.jobs.states import ChunkTask, JobKind, JobState
from app.jobs.tables import Job
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.uploads.tables import Shard, Upload, UploadKind, UploadState
from tests.factories import add_job, add_key, add_upload, add_version, entry, make_tenant
from tests.jobs import add_chunk, at_once, make_old

BUCKET = "darkroom"


@pytest.fixture
def db(quiet: Database) -> Database:
    """The second database, without any upload or key either."""
    with quiet.system() as session:
        session.execute(text("TRUNCATE uploads, idempotency_keys CASCADE"))
    return quiet


@pytest.fixture
def owner(db: Database) -> str:
    """A tenant in it."""
    return make_tenant(db)


@pytest.fixture
def store(objects: ObjectStore) -> ObjectStore:
    """The object store with our own bucket."""
    objects.ensure_bucket(BUCKET)
    return objects


def keys_under(store: ObjectStore, prefix: str) -> set[str]:
    return {found.key for found in store.list(BUCKET, prefix)}


def failed_upload(db: Database, store: ObjectStore, owner: str, hours: float = 30) -> str:
    """A failed upload with an archive and two shards."""
    with db.tenant(owner) as session:
        upload = add_upload(session, owner, [entry(0)], [entry(1)], state=UploadState.FAILED)
    store.put(BUCKET, keys.upload_archive(owner, upload.id), b"bytes")
    for number in range(2):
        store.put(BUCKET, keys.shard(owner, upload.id, number), b"shard")
    make_old(db, Upload, "created_at", hours, upload.id)
    return upload.id


def test_objects_and_shards_of_a_failed_upload_are_deleted_and_its_row_is_kept(
    db: Database, store: ObjectStore, owner: str
) -> None:
    failed = failed_upload(db, store, owner)
    young = failed_upload(db, store, owner, hours=0.1)
    with db.tenant(owner) as session:
        ready = add_upload(session, owner, [entry(0)])
    make_old(db, Upload, "created_at", 500, ready.id)
    store.put(BUCKET, keys.shard(owner, ready.id, 0), b"shard")
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 1
    assert keys_under(store, keys.upload_prefix(owner, failed)) == set()
    assert len(keys_under(store, keys.upload_prefix(owner, young))) == 3
    assert len(keys_under(store, keys.upload_prefix(owner, ready.id))) == 1
    with db.system() as session:
        shards = session.scalars(select(Shard.upload_id)).all()
        assert session.get_one(Upload, failed).state == UploadState.FAILED
    assert sorted(shards) == sorted([young, young, ready.id])
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0


def test_upload_whose_ingest_has_just_ended_is_left_to_whoever_still_writes_to_it(
    db: Database, store: ObjectStore, owner: str
) -> None:
    failed = failed_upload(db, store, owner)
    with db.tenant(owner) as session:
        job = add_job(session, owner, JobKind.INGEST)
    with db.system() as session:
        session.execute(update(Upload).where(Upload.id == failed).values(job_id=job.id))
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
    with db.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(state=JobState.FAILED, ended_at=func.now(), error={"code": "x"})
        )
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
    make_old(db, Job, "ended_at", 2, job.id)
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 1


def test_archive_that_outlived_its_ingest_is_deleted_and_what_was_recorded_of_it_is_kept(
    db: Database, store: ObjectStore, owner: str
) -> None:
    with db.tenant(owner) as session:
        job = add_job(session, owner, JobKind.INGEST)
        upload = add_upload(session, owner, [entry(0)])
        upload.job_id = job.id
        weights = add_upload(session, owner)
        weights.kind, weights.job_id = UploadKind.WEIGHTS, job.id
        shard = keys.shard(owner, upload.id, 0)
        session.execute(update(Shard).where(Shard.upload_id == upload.id).values(object_key=shard))
    store.put(BUCKET, shard, b"shard")
    # The ingest's worker died just before it deleted the archive, or a backup held deletions;
    # and a lost attempt had stored a shard that nobody recorded.
    store.put(BUCKET, keys.upload_archive(owner, upload.id), b"archive")
    store.put(BUCKET, keys.shard(owner, upload.id, 99), b"lost")
    store.put(BUCKET, keys.upload_archive(owner, weights.id), b"weights")
    make_old(db, Upload, "created_at", 30, upload.id)
    make_old(db, Upload, "created_at", 30, weights.id)
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
    with db.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(state=JobState.SUCCEEDED, ended_at=func.now())
        )
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
    make_old(db, Job, "ended_at", 2, job.id)
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 1
    assert keys_under(store, keys.upload_prefix(owner, upload.id)) == {shard}
    assert len(keys_under(store, keys.upload_prefix(owner, weights.id))) == 1
    with db.system() as session:
        assert session.get_one(Upload, upload.id).state == UploadState.READY
        assert session.scalars(select(Shard.upload_id)).all() == [upload.id]
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0


def test_upload_of_more_objects_than_one_step_deletes_is_done_in_the_next(
    db: Database, store: ObjectStore, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failed_upload(db, store, owner)
    monkeypatch.setattr(cleanup_objects, "_OBJECTS", 2)
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
    assert len(keys_under(store, keys.upload_prefix(owner, failed))) == 1
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 1
    assert keys_under(store, keys.upload_prefix(owner, failed)) == set()


def test_nothing_is_deleted_while_a_backup_holds_deletions(
    db: Database, store: ObjectStore, owner: str
) -> None:
    failed = failed_upload(db, store, owner)
    with db.system() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": HOLD})
        assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 0
        assert len(keys_under(store, keys.upload_prefix(owner, failed))) == 3
    assert cleanup_objects.tidy_uploads(db, store, BUCKET) == 1


def test_upload_whose_bytes_stopped_coming_is_given_up(
    db: Database, store: ObjectStore, owner: str
) -> None:
    with db.tenant(owner) as session:
        stream, fresh, parts, old_parts = (
            add_upload(session, owner, state=UploadState.RECEIVING) for _ in range(4)
        )
        parts.multipart_id = old_parts.multipart_id = "m"
    make_old(db, Upload, "created_at", 25, stream.id, parts.id)
    make_old(db, Upload, "created_at", 23, fresh.id)
    make_old(db, Upload, "created_at", 24 * 8, old_parts.id)
    assert cleanup_objects.give_up_uploads(db) == 2
    with db.system() as session:
        states = {
            upload.id: upload.state
            for upload in session.scalars(select(Upload).where(Upload.tenant_id == owner))
        }
    assert states == {
        stream.id: UploadState.FAILED,
        fresh.id: UploadState.RECEIVING,
        parts.id: UploadState.RECEIVING,
        old_parts.id: UploadState.FAILED,
    }


def ended_job(
    db: Database, owner: str, kind: JobKind, task: ChunkTask, attempts: int, hours: float = 2
) -> str:
    with db.tenant(owner) as session:
        job = add_job(session, owner, kind)
        chunk = add_chunk(session, job, task)
        chunk.attempt = attempts
    with db.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(state=JobState.SUCCEEDED, ended_at=func.now() - timedelta(hours=hours))
        )
    return job.id


def test_files_of_lost_attempts_of_an_export_go_and_its_artifacts_stay(
    db: Database, store: ObjectStore, owner: str
) -> None:
    job_id = ended_job(db, owner, JobKind.EXPORT, ChunkTask.EXPORT, 2)
    lost, kept = (keys.artifact(owner, job_id, f"{attempt}-results.jsonl") for attempt in (1, 2))
    for key in (lost, kept):
        store.put(BUCKET, key, b"rows")
    with db.tenant(owner) as session:
        add_artifact(
            session,
            owner,
            job_id,
            name="results.jsonl",
            media_type="application/jsonl",
            object_key=kept,
            size_bytes=4,
            sha256="0" * 64,
        )
    running = ended_job(db, owner, JobKind.EXPORT, ChunkTask.EXPORT, 1, hours=0)
    store.put(BUCKET, keys.artifact(owner, running, "1-results.jsonl"), b"rows")
    assert cleanup_objects.tidy_jobs(db, store, BUCKET) == 1
    assert keys_under(store, keys.job_prefix(owner, job_id)) == {kept}
    assert len(keys_under(store, keys.job_prefix(owner, running))) == 1
    assert cleanup_objects.tidy_jobs(db, store, BUCKET) == 0


def test_weights_of_lost_attempts_and_checkpoints_go_and_registered_weights_stay(
    db: Database, store: ObjectStore, owner: str
) -> None:
    job_id = ended_job(db, owner, JobKind.FINETUNE, ChunkTask.FINETUNE, 3)
    with db.tenant(owner) as session:
        version = add_version(session, owner)
    names = [keys.weights(owner, f"{version.id}.{attempt}") for attempt in (1, 2, 3)]
    checkpoint = f"{keys.job_prefix(owner, job_id)}checkpoints/2-1"
    for key in (*names, checkpoint):
        store.put(BUCKET, key, b"weights")
    with db.system() as session:
        version = session.merge(version)
        version.weights_key = names[1]
        session.execute(update(Job).where(Job.id == job_id).values(model_version_id=version.id))
    assert cleanup_objects.tidy_jobs(db, store, BUCKET) == 1
    assert keys_under(store, f"{keys.tenant_prefix(owner)}weights/") == {names[1]}
    assert keys_under(store, keys.job_prefix(owner, job_id)) == set()


def test_open_parts_of_lost_writers_go_and_those_of_uploads_still_coming_stay(
    db: Database, store: ObjectStore, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"tenants/{owner}/lost", f"tenants/{owner}/coming"]
    lost, coming = (store.begin_multipart(BUCKET, name) for name in names)
    with db.tenant(owner) as session:
        add_upload(session, owner, state=UploadState.RECEIVING).multipart_id = coming

    def still_open() -> set[str]:
        return {
            one.multipart_id
            for one in store.list_open_multiparts(BUCKET, "tenants/")
            if one.key in names
        }

    if not still_open():
        pytest.skip("this store does not tell of open parts")
    cleanup_objects.tidy_multiparts(db, store, BUCKET)
    assert still_open() == {lost, coming}
    monkeypatch.setattr(cleanup_objects, "STREAM_AGE", timedelta(days=-1))
    assert cleanup_objects.tidy_multiparts(db, store, BUCKET) >= 1
    assert still_open() == {coming}
    store.abort_multipart(BUCKET, names[1], coming)


def test_a_round_cleans_up_as_many_batches_as_there_are(
    db: Database,
    store: ObjectStore,
    settings: Settings,
    owner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (cleanup_objects, cleanup_rows):
        monkeypatch.setattr(module, "BATCH", 3)
    for _ in range(8):
        add_key(db, owner, new_id("key"), 30)
        failed_upload(db, store, owner)
        ended_job(db, owner, JobKind.EXPORT, ChunkTask.EXPORT, 1)
    cleaned = Cleanup(db, store, settings, threading.Event()).clean_once()
    assert (cleaned.rows, cleaned.uploads, cleaned.jobs) == (8, 8, 8)


def test_three_that_tidy_at_the_same_moment_do_it_once_and_without_a_fault(
    db: Database, store: ObjectStore, settings: Settings, owner: str
) -> None:
    failed = [failed_upload(db, store, owner) for _ in range(3)]
    exports = [ended_job(db, owner, JobKind.EXPORT, ChunkTask.EXPORT, 1) for _ in range(3)]
    for job_id in exports:
        store.put(BUCKET, keys.artifact(owner, job_id, "1-results.jsonl"), b"rows")
    for _ in range(20):
        add_key(db, owner, new_id("key"), 30)
    sweepers = [Cleanup(db, store, settings, threading.Event()) for _ in range(3)]
    answers = at_once(*[sweeper.clean_once for sweeper in sweepers])
    rounds = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(rounds) == 3, answers
    assert sum(one.rows for one in rounds) == 20
    assert sum(one.uploads for one in rounds) == 3
    assert sum(one.jobs for one in rounds) == 3
    for upload_id in failed:
        assert keys_under(store, keys.upload_prefix(owner, upload_id)) == set()
    assert not sweepers[0].clean_once()
