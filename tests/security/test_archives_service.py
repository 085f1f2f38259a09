"""Hostile archives and lists through the API and a real worker, which outlives them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_uploads
from app.errors import ObjectMissingError
from app.jobs.states import ItemState, JobState
from app.jobs.tables import Item, Job
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_tenant
from app.uploads.receive import get_upload
from app.uploads.tables import Shard, Upload, UploadState
from tests.api_client import Api, make_key
from tests.factories import add_version
from tests.jobs import make_old
from tests.security.archive_cases import IMAGE, NEIGHBOURS, Case, good_zip
from tests.security.hostile_archives import CASES
from tests.security.raw_archives import ZipMember
from tests.service import Service, WorkerHandle, running_service, wait_until

BUCKET = "darkroom"
SHARD_ITEMS = 50
_BY_NAME = {case.name: case for case in CASES}
REFUSED = [
    _BY_NAME[name]
    for name in (
        *("overlapping", "bomb-gzip", "bomb-xz", "truncated-50-tar.gz", "zip64-count-differs"),
        *("prepended-zip", "encrypted-directory", "folders-only-tar", "pax-gigabyte"),
        *("gzip-empty-members", "labels-link", "packed-bytes-huge", "tar-size-short"),
    )
]
TAKEN = [_BY_NAME[name] for name in ("climbing-zip", "sparse-gnu-tar.gz", "nested-zip-zip")]


@pytest.fixture(scope="module")
def tenant(database: Database) -> str:
    """One tenant for all, so that what is left anywhere is found by its prefix."""
    with database.system() as session:
        return create_tenant(session, "hostile").id


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher; its worker commits small shards, so that a late refusal leaves some."""
    with running_service(settings, database, tmp_path_factory.mktemp("hostile")) as service:
        yield service


@pytest.fixture(scope="module")
def worker(service: Service) -> WorkerHandle:
    """The one worker that takes everything in this file."""
    return service.start_worker("io", shard_items=SHARD_ITEMS)


@pytest.fixture(scope="module")
def api(app: Any, settings: Settings, database: Database, tenant: str) -> Api:
    """The tenant's view of the API."""
    return Api(app, make_key(database, settings, tenant))


def send(api: Api, service: Service, tenant: str, content: bytes) -> Job:
    """The ingest job of an upload, when it has ended."""
    answer = api("POST", "/v1/uploads?filename=x.zip", data=content)
    assert answer.status_code == 202, answer.text
    return service.wait_for_end(tenant, answer.json["job"]["id"], seconds=120)


def left_in_store(objects: ObjectStore, tenant: str, job: Job) -> list[str]:
    found = objects.list(BUCKET, keys.upload_prefix(tenant, job.input["upload"]))
    return [one.key for one in found]


def assert_nothing_is_left(database: Database, objects: ObjectStore, tenant: str, job: Job) -> None:
    """The upload failed, its archive goes at once, and its shards when they are old enough."""
    upload_id = job.input["upload"]
    with database.tenant(tenant) as session:
        upload = get_upload(session, tenant, upload_id)
        assert upload.state == UploadState.FAILED

    def archive_is_gone() -> bool:
        try:
            objects.head(BUCKET, upload.object_key)
        except ObjectMissingError:
            return True
        return False

    wait_until(archive_is_gone, "the archive is deleted")
    make_old(database, Upload, "created_at", 2, upload_id)
    make_old(database, Job, "ended_at", 2, job.id)
    # The service's dispatcher tidies, too.
    tidy_uploads(database, objects, BUCKET)
    wait_until(lambda: not left_in_store(objects, tenant, job), "its shards are deleted")
    with database.tenant(tenant) as session:
        assert not session.scalars(select(Shard).where(Shard.upload_id == upload_id)).all()


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_a_refused_archive_fails_its_job_with_the_code_and_leaves_nothing(
    case: Case,
    api: Api,
    service: Service,
    worker: WorkerHandle,
    database: Database,
    objects: ObjectStore,
    tenant: str,
) -> None:
    job = send(api, service, tenant, case.make())
    assert (job.state, job.error and job.error["code"]) == (JobState.FAILED, case.refused)
    seen = api("GET", f"/v1/jobs/{job.id}").json
    assert seen["error"]["code"] == case.refused
    assert seen["error"]["detail"]
    assert_nothing_is_left(database, objects, tenant, job)
    assert worker.process.poll() is None


@pytest.mark.parametrize("case", TAKEN, ids=[case.name for case in TAKEN])
def test_a_bad_member_fails_alone_and_255_neighbours_succeed(
    case: Case,
    api: Api,
    service: Service,
    worker: WorkerHandle,
    database: Database,
    tenant: str,
) -> None:
    job = send(api, service, tenant, case.make())
    assert job.state == JobState.PARTIALLY_SUCCEEDED, job.error
    with database.tenant(tenant) as session:
        items = session.scalars(select(Item).where(Item.job_id == job.id)).all()
        assert get_upload(session, tenant, job.input["upload"]).state == UploadState.READY
    good = [item.source for item in items if item.state == ItemState.SUCCEEDED]
    assert sorted(good) == NEIGHBOURS
    assert {item.source: item.error["code"] for item in items if item.error} == case.failed
    assert worker.process.poll() is None


def test_the_same_worker_takes_the_next_good_archive(
    api: Api, service: Service, worker: WorkerHandle, tenant: str
) -> None:
    labels = b"filename,label\ngood/000.jpg,=cmd\ngood/001.jpg,dog\nnone.jpg,cat\n" + b"x" * 99_999
    job = send(api, service, tenant, good_zip(ZipMember(b"labels.csv", labels)))
    assert (job.state, job.succeeded) == (JobState.SUCCEEDED, len(NEIGHBOURS))
    assert job.result is not None
    assert [fault["line"] for fault in job.result["label_faults"]] == [4, 5]
    assert worker.process.poll() is None


def test_a_hostile_manifest_fails_its_job_and_names_the_lines(
    api: Api,
    service: Service,
    worker: WorkerHandle,
    database: Database,
    settings: Settings,
    objects: ObjectStore,
    tenant: str,
) -> None:
    objects.ensure_bucket("lists")
    objects.put("lists", "a.jpg", IMAGE, "image/jpeg")
    with database.system() as session:
        other = create_tenant(session, "victim").id
    theirs = f"s3://{BUCKET}/{keys.tenant_prefix(other)}uploads/x/archive"
    lines = [
        '{"key": "a.jpg"}',
        json.dumps({"key": theirs}),
        json.dumps({"key": f"s3://{BUCKET}/{keys.tenant_prefix(tenant)}x"}),
        '{"key": "a.jpg", "metadata": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        '{"key": "a.jpg", "key": "b.jpg"}',
        '{"key": "a.jpg", "metadata": {"a": NaN}}',
        '{"key": "a.jpg", "offset": -1, "length": 5}',
        '{"key": "a.jpg", "offset": 9223372036854775807, "length": 1}',
        '{"key": "a.jpg", "custom_id": "\\ud800"}',
        '{"key": "' + "a" * 2_000_000 + '"}',
    ]
    objects.put("lists", "m.jsonl", "\n".join(lines).encode(), "application/x-ndjson")
    with database.tenant(tenant) as session:
        model = add_version(session, tenant).id
    answer = api(
        "POST",
        "/v1/jobs",
        json={
            "kind": "predict",
            "model": model,
            "input": {"manifest": "s3://lists/m.jsonl"},
        },
    )
    assert answer.status_code == 202, answer.text
    job = service.wait_for_end(tenant, answer.json["id"], seconds=60)
    assert job.error is not None
    assert job.error["code"] == "input_invalid"
    assert [fault["line"] for fault in job.error["errors"]] == list(range(2, 11))
    said = [fault["detail"] for fault in job.error["errors"]]
    assert "belongs to the service" in said[0]
    assert "belongs to the service" in said[1]
    assert "twice" in said[3]
    assert len(json.dumps(job.error)) < 10_000
    assert worker.process.poll() is None
