"""The whole road on real parts: submit, plan, ring, claim, recognise, record, close."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import func, select

from app.db.session import Database
from app.exports.run import write_export
from app.ids import JOB, new_id
from app.jobs.pause import pause_job, resume_job
from app.jobs.progress import get_job
from app.jobs.results import page_results
from app.jobs.retry import submit_retry
from app.jobs.states import ChunkState, ChunkTask, ItemState, JobState
from app.jobs.submit import submit_predict
from app.jobs.tables import Chunk, Item, Job
from app.locations import ANYWHERE
from app.models.spec import ModelSpec
from app.models.speeds import speeds_of
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import register_weights
from tests.service import Service, WorkerHandle, running_service, wait_until
from worker.recognisers.registry import build_module, default_preprocess
from worker.recognisers.weights import save_weights

PHOTOS = "photos"
PICTURES = 200
OPTIONS = {"top_k": 3, "threshold": 0.0, "activation": "softmax"}


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher and one worker for planning that cuts small chunks."""
    folder = tmp_path_factory.mktemp("delivery")
    with running_service(settings, database, folder) as service:
        service.start_worker("io", chunk_items=10)
        yield service


@pytest.fixture(scope="module", autouse=True)
def usual_worker(service: Service) -> WorkerHandle:
    """The worker for inference that every test finds running."""
    return service.start_worker("inference")


@pytest.fixture
def model(database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path) -> str:
    """A small network with random weights, registered as ``shapes@production``."""
    spec = ModelSpec("small_cnn", ("disc", "ring", "square"), default_preprocess("small_cnn"))
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(build_module(spec), path)
    objects.ensure_bucket("darkroom")
    register_weights(database, objects, "darkroom", tenant_id, "shapes", spec, path.read_bytes())
    return "shapes"


@cache
def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pictures(objects: ObjectStore, tenant_id: str) -> str:
    """Two hundred pictures and one text file under a prefix of the client's own bucket."""
    objects.ensure_bucket(PHOTOS)
    for number in range(PICTURES):
        objects.put(PHOTOS, f"{tenant_id}/{number:03d}.png", picture(number), "image/png")
    objects.put(PHOTOS, f"{tenant_id}/note.txt", b"not an image", "text/plain")
    return f"s3://{PHOTOS}/{tenant_id}/"


def submit(db: Database, tenant_id: str, source: dict[str, Any]) -> Job:
    with db.tenant(tenant_id) as session:
        return submit_predict(
            session,
            tenant_id,
            source=source,
            model="shapes",
            options=OPTIONS,
            own_bucket="darkroom",
            locations=ANYWHERE,
        )


def results(db: Database, tenant_id: str, job: Job) -> list[Item]:
    rows: list[Item] = []
    cursor = None
    while True:
        with db.tenant(tenant_id) as session:
            page = page_results(session, tenant_id, job, cursor=cursor, limit=17)
        rows += page.items
        cursor = page.cursor
        if not page.has_more:
            return rows


def test_job_over_a_prefix_recognises_images_and_names_what_is_none(
    service: Service, database: Database, tenant_id: str, model: str, pictures: str
) -> None:
    job = submit(database, tenant_id, {"prefix": pictures})
    assert job.state == JobState.VALIDATING
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.PARTIALLY_SUCCEEDED, job.error
    assert (job.total, job.succeeded, job.failed) == (PICTURES + 1, PICTURES, 1)
    rows = results(database, tenant_id, job)
    assert [row.ordinal for row in rows] == list(range(PICTURES + 1))
    failed = [row for row in rows if row.state == ItemState.FAILED]
    assert [row.error["code"] for row in failed if row.error] == ["unsupported_format"]
    for row in rows:
        if row.state == ItemState.SUCCEEDED:
            assert row.prediction is not None
            scores = [score for _, score in row.prediction]
            assert sorted(scores, reverse=True) == scores
            assert sum(scores) == pytest.approx(1, abs=1e-5)
    version_id = str(job.model_version_id)
    with database.tenant(tenant_id) as session:
        (speed,) = speeds_of(session, tenant_id, [version_id])[version_id]
    assert speed.images == PICTURES
    assert speed.device.endswith("float32")
    assert speed.images_per_second
    assert speed.forward_images_per_second
    assert speed.forward_images_per_second > speed.images_per_second


def test_upload_prefix_manifest_and_inline_items_give_the_same_predictions(
    service: Service,
    database: Database,
    objects: ObjectStore,
    tenant_id: str,
    model: str,
    pictures: str,
) -> None:
    keys = [f"{tenant_id}/{number:03d}.png" for number in range(PICTURES)]
    lines = [
        json.dumps({"key": key, "custom_id": key, "label": "disc", "metadata": {"n": index}})
        for index, key in enumerate(keys)
    ]
    objects.put(PHOTOS, f"{tenant_id}.jsonl", "\n".join(lines).encode(), "application/json")
    csv = "key,label\n" + "\n".join(f"{key},ring" for key in keys)
    objects.put(PHOTOS, f"{tenant_id}.csv", csv.encode(), "text/csv")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for number in range(PICTURES):
            zipped.writestr(f"{number:03d}.png", picture(number))
    ingest = service.ingest(tenant_id, archive.getvalue())
    assert service.wait_for_end(tenant_id, ingest.id).state == JobState.SUCCEEDED
    sources: list[dict[str, Any]] = [
        {"upload": ingest.input["upload"]},
        {"prefix": pictures, "include": ["*.png"]},
        {"manifest": f"s3://{PHOTOS}/{tenant_id}.jsonl"},
        {"manifest": f"s3://{PHOTOS}/{tenant_id}.csv"},
        {"items": [{"key": f"s3://{PHOTOS}/{key}"} for key in keys]},
    ]
    jobs = [submit(database, tenant_id, source) for source in sources]
    predictions = []
    for job in jobs:
        ended = service.wait_for_end(tenant_id, job.id)
        assert ended.state == JobState.SUCCEEDED, ended.error
        predictions.append([row.prediction for row in results(database, tenant_id, ended)])
    assert all(prediction == predictions[0] for prediction in predictions)
    first = results(database, tenant_id, service.look_at(tenant_id, jobs[2].id))[0]
    assert (first.label, first.metadata_) == ("disc", {"n": 0})


def test_bad_manifest_lines_fail_the_job_and_are_named(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str, model: str
) -> None:
    objects.ensure_bucket(PHOTOS)
    lines = [
        '{"key": "a.png", "custom_id": "one"}',
        "{not json",
        '{"key": "b.png", "custom_id": "one"}',
        '{"key": "s3://no-such-bucket/c.png"}',
        '{"key": "d.png", "offset": 5}',
    ]
    objects.put(PHOTOS, f"{tenant_id}.jsonl", "\n".join(lines).encode(), "application/json")
    job = submit(database, tenant_id, {"manifest": f"s3://{PHOTOS}/{tenant_id}.jsonl"})
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "input_invalid"
    assert [fault["line"] for fault in job.error["errors"]] == [2, 3, 4, 5]
    assert job.error["errors_total"] == 4
    assert job.total == job.cancelled


def holds_a_chunk(db: Database, tenant_id: str, worker: WorkerHandle) -> bool:
    with db.tenant(tenant_id) as session:
        held = session.scalar(
            select(Chunk.id).where(Chunk.worker_id == worker.id, Chunk.state == ChunkState.RUNNING)
        )
    return held is not None


def assert_all_recognised_once(db: Database, tenant_id: str, job: Job, items: int) -> None:
    assert job.state == JobState.SUCCEEDED, job.error
    assert (job.total, job.succeeded) == (items, items)
    with db.tenant(tenant_id) as session:
        counted = session.execute(
            select(func.count(), func.count(Item.ordinal.distinct())).where(Item.job_id == job.id)
        ).one()
    assert tuple(counted) == (items, items)


def test_killing_a_worker_in_the_middle_of_a_job_loses_nothing_and_doubles_nothing(
    service: Service,
    usual_worker: WorkerHandle,
    database: Database,
    tenant_id: str,
    model: str,
    pictures: str,
) -> None:
    doomed = service.start_worker("inference", image_batch_size=1)
    # The usual one might have finished the whole job before this one gets a chunk of it.
    with usual_worker.frozen():
        job = submit(database, tenant_id, {"prefix": pictures, "include": ["*.png"]})
        wait_until(lambda: holds_a_chunk(database, tenant_id, doomed), "the worker holds a chunk")
        doomed.kill()
    ended = service.wait_for_end(tenant_id, job.id)
    assert_all_recognised_once(database, tenant_id, ended, PICTURES)
    with database.tenant(tenant_id) as session:
        kills = session.scalar(select(func.sum(Chunk.kills)).where(Chunk.job_id == job.id))
    assert kills


def test_stopping_worker_exits_cleanly_and_its_leases_count_as_no_kill(
    service: Service,
    usual_worker: WorkerHandle,
    database: Database,
    tenant_id: str,
    model: str,
    pictures: str,
) -> None:
    leaving = service.start_worker("inference", image_batch_size=1)
    # The usual one might have finished the whole job before this one gets a chunk of it.
    with usual_worker.frozen():
        job = submit(database, tenant_id, {"prefix": pictures, "include": ["*.png"]})
        wait_until(lambda: holds_a_chunk(database, tenant_id, leaving), "the worker holds a chunk")
        assert leaving.stop() == 0
    ended = service.wait_for_end(tenant_id, job.id)
    assert_all_recognised_once(database, tenant_id, ended, PICTURES)
    with database.tenant(tenant_id) as session:
        kills = session.scalar(select(func.sum(Chunk.kills)).where(Chunk.job_id == job.id))
    assert kills == 0


def test_running_job_that_is_paused_lets_go_and_after_its_resume_has_every_item_once(
    service: Service, database: Database, tenant_id: str, model: str, pictures: str
) -> None:
    job = submit(database, tenant_id, {"prefix": pictures, "include": ["*.png"]})
    wait_until(lambda: running_chunks(database, tenant_id, job.id) > 0, "a worker is at it")
    with database.tenant(tenant_id) as session:
        assert pause_job(session, tenant_id, job.id).state == JobState.PAUSED
    wait_until(lambda: running_chunks(database, tenant_id, job.id) == 0, "workers have let go")
    with database.tenant(tenant_id) as session:
        held = get_job(session, tenant_id, job.id)
    assert held.state == JobState.PAUSED
    assert held.succeeded < PICTURES
    assert len(results(database, tenant_id, held)) == held.succeeded
    with database.tenant(tenant_id) as session:
        assert resume_job(session, tenant_id, job.id).state == JobState.RUNNING
    ended = service.wait_for_end(tenant_id, job.id)
    assert_all_recognised_once(database, tenant_id, ended, PICTURES)
    with database.tenant(tenant_id) as session:
        kills = session.scalar(select(func.sum(Chunk.kills)).where(Chunk.job_id == job.id))
    assert kills == 0


def running_chunks(db: Database, tenant_id: str, job_id: str) -> int:
    with db.tenant(tenant_id) as session:
        return len(
            session.scalars(
                select(Chunk.id).where(
                    Chunk.job_id == job_id,
                    Chunk.task == ChunkTask.PREDICT,
                    Chunk.state == ChunkState.RUNNING,
                )
            ).all()
        )


def test_images_that_were_missing_are_recognised_by_a_retry_once_they_are_there(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str, model: str
) -> None:
    objects.ensure_bucket(PHOTOS)
    late = {3, 7}
    keys = [f"{tenant_id}/{number}.png" for number in range(12)]
    for number, key in enumerate(keys):
        if number not in late:
            objects.put(PHOTOS, key, picture(number), "image/png")
    items = [{"key": f"s3://{PHOTOS}/{key}", "custom_id": key} for key in keys]
    job = service.wait_for_end(tenant_id, submit(database, tenant_id, {"items": items}).id)
    assert (job.state, job.failed) == (JobState.PARTIALLY_SUCCEEDED, 2)

    def retry(job_id: str) -> Job:
        with database.tenant(tenant_id) as session:
            new = submit_retry(session, tenant_id, job_id)
        return service.wait_for_end(tenant_id, new.id)

    objects.put(PHOTOS, keys[3], picture(3), "image/png")
    second = retry(job.id)
    assert (second.state, second.succeeded, second.failed) == (JobState.PARTIALLY_SUCCEEDED, 1, 1)
    objects.put(PHOTOS, keys[7], picture(7), "image/png")
    third = retry(second.id)
    assert third.state == JobState.SUCCEEDED
    assert [row.custom_id for row in results(database, tenant_id, third)] == [keys[7]]
    exported = write_export(
        database,
        objects,
        "darkroom",
        tenant_id=tenant_id,
        job_id=job.id,
        export_job_id=new_id(JOB),
        attempt=1,
        format="jsonl",
        include_retries=True,
    )
    lines = objects.read("darkroom", exported.object_key).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["ordinal"], row["custom_id"], row["state"]) for row in rows] == [
        (number, key, "succeeded") for number, key in enumerate(keys)
    ]
