"""All bad images in one chunk, on the real parts: nothing is lost and the worker lives."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select

from app.db.session import Database
from app.jobs.states import ItemState, JobState
from app.jobs.tables import Chunk, Item
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.faults.library import BUCKET, register_model, submit_pictures
from tests.security.hostile_images import cases, good
from tests.service import running_service

CHUNK = 256
CASES = cases()


def put_chunk(objects: ObjectStore, prefix: str) -> str:
    """A manifest of 256 items: the bad ones in a row of good ones, each under a lying name."""
    objects.ensure_bucket(BUCKET)
    lines = []
    for place in range(CHUNK):
        # Every third item, so that no run of the children is without good and bad ones.
        case = CASES[place // 3] if place % 3 == 1 and place // 3 < len(CASES) else None
        key = f"{prefix}/{place:03d}.png"
        objects.put(BUCKET, key, good(place)[0] if case is None else case.make())
        name = f"good {place}" if case is None else case.name
        lines.append(json.dumps({"key": key, "custom_id": name}))
    objects.put(BUCKET, f"{prefix}/manifest.jsonl", "\n".join(lines).encode())
    return f"s3://{BUCKET}/{prefix}/manifest.jsonl"


def test_chunk_of_all_bad_images_ends_with_each_in_its_place_and_the_worker_alive(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path
) -> None:
    objects.ensure_bucket(settings.bucket)
    register_model(database, objects, settings.bucket, tenant_id)
    manifest = put_chunk(objects, tenant_id)
    with running_service(settings, database, tmp_path) as service:
        service.start_worker("io", chunk_items=CHUNK)
        worker = service.start_worker("inference", decode_processes=2)
        job_id = submit_pictures(database, tenant_id, manifest, settings.bucket)
        job = service.wait_for_end(tenant_id, job_id, seconds=300)
        assert worker.process.poll() is None
        log = worker.log.read_text()
    with database.system() as session:
        rows = list(session.scalars(select(Item).where(Item.job_id == job_id)))
        chunks = list(
            session.scalars(select(Chunk).where(Chunk.job_id == job_id, Chunk.task == "predict"))
        )
    assert [(chunk.attempt, chunk.kills) for chunk in chunks] == [(1, 0)]
    assert len(rows) == CHUNK
    failed = {row.custom_id: (row.error or {})["code"] for row in rows if row.error}
    expected = {case.name: case.outcome for case in CASES if isinstance(case.outcome, str)}
    assert failed == expected
    assert job.state == JobState.PARTIALLY_SUCCEEDED
    assert (job.total, job.failed) == (CHUNK, len(expected))
    assert job.succeeded == CHUNK - len(expected)
    assert all(row.state == ItemState.SUCCEEDED for row in rows if row.custom_id not in expected)
    assert "Traceback" not in log
