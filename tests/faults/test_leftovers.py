"""The question about leftovers, asked of a bucket in which something is wrong."""

from __future__ import annotations

import pytest

from app.db.session import Database
from app.jobs.artifacts import add_artifact
from app.jobs.states import JobKind
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.uploads.tables import UploadState
from tests.factories import add_upload, entry
from tests.faults.leftovers import Leftovers, find_leftovers
from tests.jobs import add_planned_job, chunk_ids, finish


@pytest.fixture
def export(database: Database, objects: ObjectStore, settings: Settings, tenant_id: str) -> str:
    """An export that has ended, with the file of its second attempt."""
    objects.ensure_bucket(settings.bucket)
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 1, kind=JobKind.EXPORT)
    (chunk,) = chunk_ids(database, job_id)
    finish(database, tenant_id, chunk)
    key = keys.artifact(tenant_id, job_id, "2-results.jsonl")
    objects.put(settings.bucket, key, b"{}")
    with database.tenant(tenant_id) as session:
        add_artifact(
            session,
            tenant_id,
            job_id,
            name="results.jsonl",
            media_type="application/x-ndjson",
            object_key=key,
            size_bytes=2,
            sha256="0" * 64,
        )
    return job_id


def test_what_a_fenced_attempt_stored_is_cleaned_up_and_what_rows_name_stays(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, export: str
) -> None:
    fenced = keys.artifact(tenant_id, export, "1-results.jsonl")
    objects.put(settings.bucket, fenced, b"half")
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, [entry(0)], state=UploadState.FAILED)
    objects.put(settings.bucket, keys.shard(tenant_id, upload.id, 0), b"shard")
    found = find_leftovers(database, objects, settings.bucket, [tenant_id])
    assert found == Leftovers(objects=1, cleaned=2, strays=[], missing=[])
    assert found.is_clean


def test_object_that_no_clean_up_knows_is_found(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, export: str
) -> None:
    stray = f"{keys.tenant_prefix(tenant_id)}jobs/{export}-elsewhere/results.jsonl"
    objects.put(settings.bucket, stray, b"{}")
    found = find_leftovers(database, objects, settings.bucket, [tenant_id])
    assert (found.strays, found.missing, found.is_clean) == ([stray], [], False)


def test_row_whose_object_is_gone_is_found(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, export: str
) -> None:
    key = keys.artifact(tenant_id, export, "2-results.jsonl")
    objects.delete(settings.bucket, [key])
    found = find_leftovers(database, objects, settings.bucket, [tenant_id])
    assert (found.strays, found.missing, found.is_clean) == ([], [key], False)


def test_question_is_not_put_while_a_job_is_open(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        add_planned_job(session, tenant_id, 1)
    with pytest.raises(AssertionError, match="1 jobs are open"):
        find_leftovers(database, objects, settings.bucket, [tenant_id])
