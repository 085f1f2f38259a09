"""Planning without a worker: submit, plan, and look at the chunks that came of it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.jobs.items import JobItem, unpack_items
from app.jobs.plan import plan_job
from app.jobs.states import ChunkTask
from app.jobs.submit import submit_predict
from app.jobs.tables import Chunk, Job
from app.locations import ANYWHERE
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_upload, add_version, entry
from tests.jobs import chunk_ids, claim, look_at_job

#: A client's bucket.
BUCKET = "plans"


def submit(db: Database, tenant_id: str, source: dict[str, Any]) -> str:
    """The id of a new predict job over the source."""
    with db.tenant(tenant_id) as session:
        version = add_version(session, tenant_id)
        return submit_predict(
            session,
            tenant_id,
            source=source,
            model=version.id,
            options={},
            own_bucket="darkroom",
            locations=ANYWHERE,
        ).id


def run_plan(
    db: Database, store: ObjectStore, settings: Settings, tenant_id: str, job_id: str
) -> Job:
    """Plan the job from beginning to end; its row afterwards."""
    (chunk_id,) = chunk_ids(db, job_id)
    lease = claim(db, tenant_id, chunk_id, task=ChunkTask.PLAN)
    assert plan_job(db, store, settings, lease, should_stop=lambda: False)
    return look_at_job(db, tenant_id, job_id)


def planned(db: Database, job_id: str) -> list[tuple[int, int, list[JobItem]]]:
    """The job's chunks as (lo, hi, items); they follow each other without a hole."""
    with db.system() as session:
        rows = session.execute(
            select(Chunk.lo, Chunk.hi, Chunk.items)
            .where(Chunk.job_id == job_id, Chunk.task == ChunkTask.PREDICT)
            .order_by(Chunk.lo)
        ).all()
    chunks = [(row.lo, row.hi, unpack_items(row.items)) for row in rows]
    end = 0
    for lo, hi, items in chunks:
        assert lo == end
        assert hi - lo == len(items)
        end = hi
    return chunks


def all_items(db: Database, job_id: str) -> list[JobItem]:
    """The items of all chunks in their order."""
    return [item for _, _, items in planned(db, job_id) for item in items]


def put(store: ObjectStore, key: str, body: str | bytes) -> str:
    """Store an object in the client's bucket; its location."""
    store.put(BUCKET, key, body.encode() if isinstance(body, str) else body)
    return f"s3://{BUCKET}/{key}"


def make_source(
    kind: str, db: Database, store: ObjectStore, tenant_id: str, folder: str
) -> dict[str, Any]:
    """Thirteen items of a kind; in upload and dataset two shards, and names that repeat."""
    if kind == "prefix":
        for number in range(13):
            put(store, f"{folder}{number:02d}.png", b"")
        return {"prefix": f"s3://{BUCKET}/{folder}"}
    if kind == "manifest":
        lines = [json.dumps({"key": f"{number}.png"}) for number in range(13)]
        return {"manifest": put(store, f"{folder}list.jsonl", "\n".join(lines))}
    if kind == "items":
        return {"items": [{"key": f"s3://{BUCKET}/{number}.png"} for number in range(13)]}
    names = [f"{number % 5}.png" for number in range(13)]
    entries = [
        entry(number, "cat", "test")._replace(name=name) for number, name in enumerate(names)
    ]
    with db.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries[:5], entries[5:])
        if kind == "upload":
            return {"upload": upload.id}
        version = freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
        return {"dataset": version.id}
