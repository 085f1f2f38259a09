"""Exports from a real database into a real object store."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import func, insert, update

from app.db.session import Database
from app.errors import NotFoundError, ObjectMissingError
from app.exports import read
from app.exports.read import ExportMismatchError
from app.exports.run import (
    ExportedFile,
    ExportStoppedError,
    write_export,
)
from app.ids import JOB, TENANT, new_id
from app.jobs.states import ItemState, JobKind, JobState
from app.jobs.tables import Item, Job
from app.storage.s3 import ObjectStore

BUCKET = "darkroom"
FAILURE = {"code": "undecodable", "detail": "no image"}


def add_job(
    db: Database, tenant: str, ordinals: list[int], *, failed: set[int], ended: bool = True
) -> str:
    """A job whose items were recorded in the order given, each by a recording of its own."""
    job_id = new_id(JOB)
    with db.tenant(tenant) as session:
        session.add(
            Job(
                id=job_id,
                tenant_id=tenant,
                kind=JobKind.PREDICT,
                state=JobState.PARTIALLY_SUCCEEDED if ended else JobState.RUNNING,
                input={},
                options={"top_k": 5},
                metadata_={},
                total=len(ordinals) if ended else 100,
                succeeded=len(ordinals) - len(failed),
                failed=len(failed),
                seq=len(ordinals),
                sealed_at=func.now(),
                ended_at=func.now() if ended else None,
            )
        )
        record_items(session, tenant, job_id, ordinals, failed)
    return job_id


def record_items(
    session: Any, tenant: str, job_id: str, ordinals: list[int], failed: set[int], seq: int = 0
) -> None:
    for place, ordinal in enumerate(ordinals, start=1):
        ending: dict[str, Any] = (
            {"state": ItemState.FAILED, "error": FAILURE}
            if ordinal in failed
            else {"state": ItemState.SUCCEEDED, "prediction": [["cat", 0.5]]}
        )
        session.execute(
            insert(Item).values(
                job_id=job_id,
                tenant_id=tenant,
                ordinal=ordinal,
                seq=seq + place,
                attempt=1,
                custom_id=f"image-{ordinal}",
                source=f"{ordinal}.jpg",
                label="cat",
                metadata_={"n": ordinal},
                **ending,
            )
        )


def export(
    db: Database, objects: ObjectStore, tenant: str, job_id: str, **more: Any
) -> ExportedFile:
    options = {"format": "jsonl", "export_job_id": new_id(JOB), "attempt": 1, **more}
    return write_export(db, objects, BUCKET, tenant_id=tenant, job_id=job_id, **options)


def lines_of(objects: ObjectStore, exported: ExportedFile) -> list[dict[str, Any]]:
    content = objects.read(BUCKET, exported.object_key)
    assert len(content) == exported.size_bytes
    assert hashlib.sha256(content).hexdigest() == exported.sha256
    return [json.loads(line) for line in content.splitlines()]


def test_export_lists_every_item_once_in_input_order(
    database: Database, objects: ObjectStore, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAGE_ROWS_MAX", 3)
    job_id = add_job(database, tenant_id, [4, 0, 6, 1, 5, 3, 2], failed={1, 6})
    seen: list[int] = []
    exported = export(database, objects, tenant_id, job_id, on_progress=seen.append)
    assert [line["ordinal"] for line in lines_of(objects, exported)] == list(range(7))
    assert seen == [3, 6, 7]
    assert exported.rows == 7
    assert exported.counts == {"failed": 2, "succeeded": 5}


def test_export_page_that_is_exactly_full_ends_the_file(
    database: Database, objects: ObjectStore, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAGE_ROWS_MAX", 3)
    job_id = add_job(database, tenant_id, list(range(6)), failed=set())
    assert export(database, objects, tenant_id, job_id).rows == 6


@pytest.mark.parametrize(
    ("only", "ordinals"), [("succeeded", [0, 2, 3]), ("failed", [1, 4]), ("all", [0, 1, 2, 3, 4])]
)
def test_export_filter_keeps_only_that_state(
    database: Database, objects: ObjectStore, tenant_id: str, only: str, ordinals: list[int]
) -> None:
    job_id = add_job(database, tenant_id, list(range(5)), failed={1, 4})
    exported = export(database, objects, tenant_id, job_id, only=only)
    assert [line["ordinal"] for line in lines_of(objects, exported)] == ordinals


def test_export_of_a_running_job_leaves_out_what_is_recorded_after_its_start(
    database: Database, objects: ObjectStore, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAGE_ROWS_MAX", 2)
    job_id = add_job(database, tenant_id, [0, 1, 5, 8], failed=set(), ended=False)
    late = iter([[3, 9]])

    def record_late(_rows: int) -> None:
        for ordinals in late:
            with database.tenant(tenant_id) as session:
                record_items(session, tenant_id, job_id, ordinals, set(), seq=4)
                session.execute(
                    update(Job).where(Job.id == job_id).values(seq=6, succeeded=Job.succeeded + 2)
                )

    exported = export(database, objects, tenant_id, job_id, on_progress=record_late)
    assert [line["ordinal"] for line in lines_of(objects, exported)] == [0, 1, 5, 8]
    manifest = json.loads(objects.read(BUCKET, exported.manifest.object_key))
    assert manifest["job"]["complete"] is False
    assert manifest["rows"] == 4


def test_manifest_describes_the_file_beside_it(
    database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    job_id = add_job(database, tenant_id, list(range(3)), failed={2})
    exported = export(database, objects, tenant_id, job_id, format="parquet", only="failed")
    content = objects.read(BUCKET, exported.manifest.object_key)
    assert hashlib.sha256(content).hexdigest() == exported.manifest.sha256
    manifest = json.loads(content)
    assert manifest["file"]["sha256"] == exported.sha256
    assert manifest["file"]["size_bytes"] == exported.size_bytes
    assert manifest["filter"] == {"only": "failed"}
    assert manifest["counts"] == {"failed": 1}
    assert manifest["job"]["id"] == job_id
    assert manifest["job"]["complete"] is True
    assert manifest["job"]["counts"]["total"] == 3
    table = parquet.read_table(io.BytesIO(objects.read(BUCKET, exported.object_key)))
    assert table.column("error_code").to_pylist() == ["undecodable"]


def test_attempts_write_objects_of_their_own(
    database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    job_id = add_job(database, tenant_id, [0], failed=set())
    exporter = new_id(JOB)
    first, second = (
        export(database, objects, tenant_id, job_id, export_job_id=exporter, attempt=attempt)
        for attempt in (1, 2)
    )
    assert first.object_key != second.object_key
    assert first.sha256 == second.sha256


def test_stopped_export_stores_nothing(
    database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    job_id = add_job(database, tenant_id, [0], failed=set())
    exporter = new_id(JOB)
    with pytest.raises(ExportStoppedError):
        export(
            database, objects, tenant_id, job_id, export_job_id=exporter, should_stop=lambda: True
        )
    assert list(objects.list(BUCKET, f"tenants/{tenant_id}/jobs/{exporter}/")) == []


def test_export_that_misses_an_item_is_discarded(
    database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    job_id = add_job(database, tenant_id, [0, 1], failed=set())
    with database.tenant(tenant_id) as session:
        session.execute(update(Job).where(Job.id == job_id).values(total=3, succeeded=3))
    exporter = new_id(JOB)
    with pytest.raises(ExportMismatchError, match="counts"):
        export(database, objects, tenant_id, job_id, export_job_id=exporter)
    with pytest.raises(ObjectMissingError):
        objects.head(BUCKET, f"tenants/{tenant_id}/jobs/{exporter}/artifacts/1-results.jsonl")


def test_job_of_another_tenant_is_not_found(
    database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    job_id = add_job(database, tenant_id, [0], failed=set())
    with pytest.raises(NotFoundError):
        export(database, objects, new_id(TENANT), job_id)
