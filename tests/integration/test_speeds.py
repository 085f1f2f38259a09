"""Speeds of versions: kept with the chunks, summed as their job ends, and never waited for."""

from __future__ import annotations

from sqlalchemy import text

from app.db.session import Database
from app.jobs.record import record_chunk
from app.jobs.speeds import ChunkSpeed
from app.jobs.states import JobState
from app.models.speeds import DeviceSpeed, speeds_of
from tests.factories import add_version
from tests.jobs import assert_closed, claim, finish, make_job, rows_of

GPU = "NVIDIA H200, float32"
CPU = "Some CPU, 2 threads, float32"


def add(database: Database, tenant_id: str) -> str:
    with database.tenant(tenant_id) as session:
        return add_version(session, tenant_id).id


def run(database: Database, tenant_id: str, version_id: str | None, *speeds: ChunkSpeed) -> str:
    """A job of chunks that took so long; one image each."""
    job_id, chunks = make_job(
        database, tenant_id, *(1 for _ in speeds), model_version_id=version_id
    )
    for chunk_id, speed in zip(chunks, speeds, strict=True):
        lease = claim(database, tenant_id, chunk_id)
        with database.tenant(tenant_id) as session:
            record_chunk(session, lease, rows_of(lease), speed=speed)
    assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    return job_id


def speeds(database: Database, tenant_id: str, version_id: str) -> list[DeviceSpeed]:
    with database.tenant(tenant_id) as session:
        return speeds_of(session, tenant_id, [version_id]).get(version_id, [])


def test_speeds_of_chunks_are_summed_by_device_as_the_job_ends(
    database: Database, tenant_id: str
) -> None:
    version_id = add(database, tenant_id)
    assert speeds(database, tenant_id, version_id) == []
    run(database, tenant_id, version_id, ChunkSpeed(GPU, 100, 1, 4), ChunkSpeed(CPU, 30, 10, 15))
    run(database, tenant_id, version_id, ChunkSpeed(GPU, 300, 1, 4))
    assert speeds(database, tenant_id, version_id) == [
        DeviceSpeed(GPU, 50.0, 200.0, 400),
        DeviceSpeed(CPU, 2.0, 3.0, 30),
    ]


def test_chunks_without_a_speed_and_jobs_without_a_version_add_none(
    database: Database, tenant_id: str
) -> None:
    version_id = add(database, tenant_id)
    job_id, (chunk,) = make_job(database, tenant_id, 1, model_version_id=version_id)
    finish(database, tenant_id, chunk)
    assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    run(database, tenant_id, None, ChunkSpeed(GPU, 100, 1, 4))
    assert speeds(database, tenant_id, version_id) == []
    run(database, tenant_id, version_id, ChunkSpeed(GPU, 10, 0.0, 0.0))
    assert speeds(database, tenant_id, version_id) == [DeviceSpeed(GPU, None, None, 10)]


def test_job_ends_without_waiting_for_another_that_adds_to_the_same_version(
    database: Database, tenant_id: str
) -> None:
    version_id = add(database, tenant_id)
    with database.tenant(tenant_id) as other:
        other.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))"), {"id": version_id}
        )
        run(database, tenant_id, version_id, ChunkSpeed(GPU, 100, 1, 4))
    assert speeds(database, tenant_id, version_id) == []
    run(database, tenant_id, version_id, ChunkSpeed(GPU, 200, 1, 4))
    assert speeds(database, tenant_id, version_id) == [DeviceSpeed(GPU, 50.0, 200.0, 200)]
