"""The photo job on real photos and real weights, with a worker killed in its middle.

Photos and weights are no part of the repository: they are looked for beside it, in
``../shared/data``, and the tests are skipped where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.db.session import Database
from app.jobs.states import ChunkState, JobState
from app.jobs.submit import submit_import, submit_predict
from app.jobs.tables import Chunk, Item, Job
from app.locations import ANYWHERE
from app.settings import Settings
from app.uploads.tables import UploadKind
from tests.service import Service, WorkerHandle, running_service, wait_until

DATA = Path(__file__).parents[3] / "shared" / "data"
PHOTOS = DATA / "imagenet-sample-200.zip"
WEIGHTS = DATA / "squeezenet1_0_imagenet_fp16.safetensors"

pytestmark = pytest.mark.skipif(
    not (PHOTOS.exists() and WEIGHTS.exists()),
    reason="the sample photos and weights are not beside the repository",
)


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with running_service(settings, database, tmp_path_factory.mktemp("photos")) as service:
        service.start_worker("io", chunk_items=20)
        yield service


def holds_a_chunk(db: Database, tenant_id: str, job_id: str, worker: WorkerHandle) -> bool:
    with db.tenant(tenant_id) as session:
        held = session.scalar(
            select(Chunk.id).where(
                Chunk.job_id == job_id,
                Chunk.worker_id == worker.id,
                Chunk.state == ChunkState.RUNNING,
            )
        )
    return held is not None


def test_photo_job_survives_the_death_of_its_worker_with_the_known_accuracy(
    service: Service, database: Database, tenant_id: str
) -> None:
    doomed = service.start_worker("inference")
    weights = service.send(tenant_id, WEIGHTS.read_bytes(), UploadKind.WEIGHTS)
    with database.tenant(tenant_id) as session:
        imported = submit_import(
            session,
            tenant_id,
            model="squeezenet",
            arch="squeezenet1_0",
            weights=weights,
            classes="imagenet",
        )
    assert service.wait_for_end(tenant_id, imported.id).state == JobState.SUCCEEDED
    ingest = service.ingest(tenant_id, PHOTOS.read_bytes())
    assert service.wait_for_end(tenant_id, ingest.id).state == JobState.SUCCEEDED
    with database.tenant(tenant_id) as session:
        job = submit_predict(
            session,
            tenant_id,
            source={"upload": ingest.input["upload"]},
            model="squeezenet",
            options={"top_k": 5, "threshold": 0.0, "activation": "softmax"},
            own_bucket="darkroom",
            locations=ANYWHERE,
        )

    def is_in_the_middle() -> bool:
        recorded = service.look_at(tenant_id, job.id).succeeded
        return recorded > 0 and holds_a_chunk(database, tenant_id, job.id, doomed)

    wait_until(is_in_the_middle, "some photos are recorded and others are being recognised")
    doomed.kill()
    assert service.look_at(tenant_id, job.id).succeeded < 200
    service.start_worker("inference")
    ended = service.wait_for_end(tenant_id, job.id, seconds=120)
    assert_recognised_once(database, tenant_id, ended)


def assert_recognised_once(db: Database, tenant_id: str, job: Job) -> None:
    assert job.state == JobState.SUCCEEDED, job.error
    with db.tenant(tenant_id) as session:
        items = session.scalars(select(Item).where(Item.job_id == job.id)).all()
        kills = session.scalar(select(func.sum(Chunk.kills)).where(Chunk.job_id == job.id))
    assert kills
    assert sorted(item.ordinal for item in items) == list(range(200))
    ranked = [([name for name, _ in item.prediction or []], item.label) for item in items]
    top1 = sum(names[0] == label for names, label in ranked) / 200
    top5 = sum(label in names for names, label in ranked) / 200
    assert top1 == pytest.approx(0.605, abs=0.005)
    assert top5 == pytest.approx(0.855, abs=0.005)
