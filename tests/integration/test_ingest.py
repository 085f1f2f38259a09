"""Archives through real workers: packed, judged, labelled, and resumed after a kill."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping

import pytest
from sqlalchemy import select

from app.db.session import Database
from app.errors import ObjectMissingError
from app.jobs.cancel import cancel_job
from app.jobs.states import ItemState, JobState
from app.jobs.tables import Chunk, Item, Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.uploads.pack import ShardEntry
from app.uploads.receive import get_upload
from app.uploads.tables import Shard, Upload, UploadState
from tests.service import Service, WorkerHandle, running_service, wait_until
from tests.unit.archives import image_bytes, make_tar, make_zip

SHARD_ITEMS = 10
CAT, DOG = (image_bytes(colour=colour) for colour in (10, 200))
CUT = image_bytes("PNG", (60, 60))[:20]
PETS = {
    "pets/cat/1.jpg": CAT,
    "pets/dog/1.jpg": DOG,
    "pets/notes.txt": b"not an image",
    "pets/cat/2.png": image_bytes("PNG"),
    "pets/dog/cut.png": CUT,
    "pets/dog/empty.jpg": b"",
}


@pytest.fixture(scope="module")
def workers() -> dict[str, WorkerHandle]:
    """The running workers by id."""
    return {}


@pytest.fixture(scope="module")
def service(
    settings: Settings,
    database: Database,
    tmp_path_factory: pytest.TempPathFactory,
    workers: dict[str, WorkerHandle],
) -> Iterator[Service]:
    """A dispatcher and two workers that commit small shards."""
    with running_service(settings, database, tmp_path_factory.mktemp("ingest")) as service:
        for _ in range(2):
            worker = service.start_worker("io", shard_items=SHARD_ITEMS)
            workers[worker.id] = worker
        yield service


def wait_until_archive_is_freed(
    db: Database, objects: ObjectStore, tenant_id: str, job: Job
) -> None:
    """Its bytes are of no use any more: the images lie in shards, or there are none."""
    key = upload_of(db, tenant_id, job).object_key

    def is_gone() -> bool:
        try:
            objects.head("darkroom", key)
        except ObjectMissingError:
            return True
        return False

    wait_until(is_gone, "the archive is deleted")


def upload_of(db: Database, tenant_id: str, job: Job) -> Upload:
    with db.tenant(tenant_id) as session:
        return get_upload(session, tenant_id, job.input["upload"])


def items_of(db: Database, tenant_id: str, job: Job) -> list[Item]:
    with db.tenant(tenant_id) as session:
        rows = session.scalars(select(Item).where(Item.job_id == job.id).order_by(Item.ordinal))
        return list(rows)


def packed(db: Database, store: ObjectStore, tenant_id: str, job: Job) -> list[ShardEntry]:
    """The index of every shard, each entry of which was read back by its place."""
    with db.tenant(tenant_id) as session:
        shards = session.scalars(
            select(Shard).where(Shard.upload_id == job.input["upload"]).order_by(Shard.number)
        ).all()
    found: list[ShardEntry] = []
    for shard in shards:
        body = store.open("darkroom", shard.object_key).read()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (shard.size_bytes, shard.sha256)
        entries = [ShardEntry.from_row(row) for row in shard.entries]
        for entry in entries:
            content = body[entry.offset : entry.offset + entry.length]
            assert hashlib.sha256(content).hexdigest() == entry.sha256
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            assert [(m.offset_data, m.size) for m in tar] == [(e.offset, e.length) for e in entries]
        found += entries
    return found


def assert_whole(
    db: Database, store: ObjectStore, tenant_id: str, job: Job, files: Mapping[str, bytes]
) -> None:
    """Every member has one item, and every image lies in one shard as it was sent."""
    items = items_of(db, tenant_id, job)
    assert [(item.ordinal, item.source) for item in items] == list(enumerate(files))
    entries = packed(db, store, tenant_id, job)
    assert [entry.ordinal for entry in entries] == [
        item.ordinal for item in items if item.state == ItemState.SUCCEEDED
    ]
    for entry in entries:
        assert entry.sha256 == hashlib.sha256(files[entry.name]).hexdigest()


@pytest.mark.parametrize(
    "make", [make_zip, make_tar, lambda files: make_tar(files, "w:gz")], ids=["zip", "tar", "gz"]
)
def test_images_are_packed_with_labels_and_other_members_fail_with_their_codes(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    make: Callable[[Mapping[str, bytes]], bytes],
) -> None:
    job = service.ingest(tenant_id, make(PETS))
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.PARTIALLY_SUCCEEDED, job.error
    assert (job.total, job.succeeded, job.failed) == (6, 3, 3)
    assert_whole(database, objects, tenant_id, job, PETS)
    items = {item.source: item for item in items_of(database, tenant_id, job)}
    assert {name: item.error["code"] for name, item in items.items() if item.error} == {
        "pets/notes.txt": "unsupported_format",
        "pets/dog/cut.png": "undecodable",
        "pets/dog/empty.jpg": "empty",
    }
    labels = {name: item.label for name, item in items.items() if item.state == "succeeded"}
    assert labels == {"pets/cat/1.jpg": "cat", "pets/dog/1.jpg": "dog", "pets/cat/2.png": "cat"}
    upload = upload_of(database, tenant_id, job)
    assert (upload.state, upload.image_count, upload.failed_count) == (UploadState.READY, 3, 3)
    wait_until_archive_is_freed(database, objects, tenant_id, job)
    assert_whole(database, objects, tenant_id, job, PETS)


def test_a_labels_file_gives_labels_and_splits_and_its_bad_lines_are_told(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    labels = b"filename,label,split\na.jpg,cat,train\nb.jpg,dog,someday\n"
    job = service.ingest(tenant_id, make_zip({"a.jpg": CAT, "b.jpg": DOG, "labels.csv": labels}))
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    entries = packed(database, objects, tenant_id, job)
    assert [(entry.label, entry.split) for entry in entries] == [("cat", "train"), (None, None)]
    assert job.result is not None
    assert job.result["label_faults_total"] == 1
    assert job.result["label_faults"][0]["line"] == 3


def test_a_damaged_zip_member_fails_and_its_neighbours_are_packed(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    files = {f"{number}.jpg": image_bytes(colour=number) for number in range(5)}
    archive = bytearray(make_zip(files, 0))
    place = archive.index(files["3.jpg"])
    archive[place + 100] ^= 0xFF
    job = service.ingest(tenant_id, bytes(archive))
    job = service.wait_for_end(tenant_id, job.id)
    assert (job.state, job.succeeded) == (JobState.PARTIALLY_SUCCEEDED, 4)
    assert_whole(database, objects, tenant_id, job, files)
    error = items_of(database, tenant_id, job)[3].error
    assert error is not None
    assert error["code"] == "member_damaged"
    assert "3.jpg is damaged" in error["detail"]
    assert f"byte {place} " in error["detail"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_broken_archive_fails_job_and_upload_and_names_the_offset(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    make: Callable[[Mapping[str, bytes]], bytes],
) -> None:
    archive = make({f"{number}.jpg": image_bytes(colour=number) for number in range(30)})
    job = service.ingest(tenant_id, archive[: len(archive) // 2])
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "archive_truncated"
    assert "at byte " in job.error["detail"]
    assert upload_of(database, tenant_id, job).state == UploadState.FAILED
    wait_until_archive_is_freed(database, objects, tenant_id, job)


def test_an_archive_without_files_fails(
    service: Service, database: Database, tenant_id: str
) -> None:
    job = service.ingest(tenant_id, make_zip({"photos/": b""}))
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "archive_empty"
    assert upload_of(database, tenant_id, job).state == UploadState.FAILED


def wait_for_shards(db: Database, tenant_id: str, job: Job, shards: int) -> str:
    """The worker that has recorded at least so many shards and goes on."""

    def holder() -> str | None:
        with db.tenant(tenant_id) as session:
            chunk = session.execute(
                select(Chunk.worker_id, Chunk.cursor).where(Chunk.job_id == job.id)
            ).one()
        return chunk.worker_id if chunk.cursor and chunk.cursor["shards"] >= shards else None

    return wait_until(holder, f"{shards} shards are recorded")


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    """Enough images for over a hundred shards, and one text file in each."""
    files = {}
    for number in range(1500):
        text = number % SHARD_ITEMS == 4
        files[f"{number:04d}"] = b"text" if text else image_bytes("PNG", colour=number * 997)
    return files


def test_ingest_killed_in_the_middle_goes_on_and_packs_every_member_once(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    workers: dict[str, WorkerHandle],
    many: dict[str, bytes],
) -> None:
    job = service.ingest(tenant_id, make_zip(many))
    workers.pop(wait_for_shards(database, tenant_id, job, 3)).kill()
    assert service.look_at(tenant_id, job.id).state == JobState.RUNNING
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.PARTIALLY_SUCCEEDED, job.error
    assert (job.total, job.succeeded, job.failed) == (1500, 1350, 150)
    assert_whole(database, objects, tenant_id, job, many)
    upload = upload_of(database, tenant_id, job)
    assert (upload.image_count, upload.failed_count) == (1350, 150)
    with database.tenant(tenant_id) as session:
        chunk = session.scalars(select(Chunk).where(Chunk.job_id == job.id)).one()
        assert chunk.attempt == 2


def test_ingest_cancelled_in_the_middle_ends_soon_and_keeps_its_count(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    many: dict[str, bytes],
) -> None:
    job = service.ingest(tenant_id, make_zip(many))
    wait_for_shards(database, tenant_id, job, 3)
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job.id)
    job = service.wait_for_end(tenant_id, job.id, seconds=10)
    assert job.state == JobState.CANCELLED
    assert 30 <= job.succeeded + job.failed < 1500
    assert job.succeeded + job.failed + job.cancelled == job.total == 1500
    assert upload_of(database, tenant_id, job).state == UploadState.FAILED
    wait_until_archive_is_freed(database, objects, tenant_id, job)
