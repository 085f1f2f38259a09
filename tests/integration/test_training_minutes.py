"""Training minutes: every attempt counts, what is over is refused, what passes it is ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.dispatch.cleanup_rows import clean_rows
from app.dispatch.sweep import sweep_once
from app.errors import InvalidInputError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease, look_at_lease, release_chunk
from app.jobs.record import record_failure, record_stopped
from app.jobs.states import ChunkTask, JobKind, JobState, StopReason
from app.jobs.tables import Chunk
from app.jobs.training_time import used_seconds
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.quotas import set_quotas
from app.tenants.tables import Tenant
from app.training.tables import TrainingTime
from app.uploads.pack import ShardEntry
from tests.api_client import Api, import_body, make_app, make_key
from tests.factories import add_job, add_upload, entry, make_tenant
from tests.jobs import add_chunk, claim, look_at_job
from tests.trainings import Training
from tests.unit.pictures import one_torch_thread
from worker.tasks.door import let_go


def begin(db: Database, tenant_id: str, task: ChunkTask = ChunkTask.FINETUNE) -> Lease:
    """A worker's lease of the one chunk of a new job."""
    with db.tenant(tenant_id) as session:
        kind = JobKind.FINETUNE if task is ChunkTask.FINETUNE else JobKind.IMPORT
        job = add_job(session, tenant_id, kind)
        job.sealed_at = func.now()
        chunk_id = add_chunk(session, job, task).id
    return claim(db, tenant_id, chunk_id, task=task)


def let_pass(db: Database, lease: Lease, seconds: float) -> None:
    """Let the attempt have begun so long ago."""
    with db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == lease.chunk_id)
            .values(running_at=func.now() - timedelta(seconds=seconds))
        )


def used(db: Database, tenant_id: str) -> int:
    with db.tenant(tenant_id) as session:
        return round(used_seconds(session, tenant_id))


def add_time(db: Database, tenant_id: str, days_ago: float, minutes: float) -> None:
    """An attempt that ended so long ago."""
    with db.system() as session:
        number = session.scalar(select(func.count()).select_from(TrainingTime))
        ended_at = func.now() - timedelta(days=days_ago)
        session.add(
            TrainingTime(
                chunk_id=f"chk_{number}",
                attempt=1,
                tenant_id=tenant_id,
                job_id="job_x",
                began_at=ended_at - timedelta(minutes=minutes),
                ended_at=ended_at,
            )
        )


def release(db: Database, lease: Lease) -> None:
    with db.tenant(lease.tenant_id) as session:
        release_chunk(session, lease, failed=True)


def fail(db: Database, lease: Lease) -> None:
    with db.tenant(lease.tenant_id) as session:
        record_failure(session, lease, InvalidInputError("no").as_dict())


def stop(db: Database, lease: Lease) -> None:
    with db.tenant(lease.tenant_id) as session:
        cancel_job(session, lease.tenant_id, lease.job_id)
        record_stopped(session, lease)


@pytest.mark.parametrize("end", [release, fail, stop])
def test_attempt_counts_however_it_ends(
    quiet: Database, owner: str, end: Callable[[Database, Lease], None]
) -> None:
    lease = begin(quiet, owner)
    let_pass(quiet, lease, 100)
    # In work, and afterwards the same.
    assert used(quiet, owner) == 100
    end(quiet, lease)
    assert used(quiet, owner) == 100


def test_killed_attempt_counts_to_the_end_of_its_lease(quiet: Database, owner: str) -> None:
    lease = begin(quiet, owner)
    let_pass(quiet, lease, 100)
    with quiet.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == lease.chunk_id)
            .values(lease_until=func.now() - timedelta(seconds=40))
        )
    # Nobody has noticed yet, and it is no more for that.
    assert used(quiet, owner) == 60
    sweep_once(quiet, max_kills=5)
    assert used(quiet, owner) == 60
    again = claim(quiet, owner, lease.chunk_id, task=ChunkTask.FINETUNE)
    let_pass(quiet, again, 5)
    release(quiet, again)
    assert used(quiet, owner) == 65


def test_other_work_and_other_tenants_do_not_count(quiet: Database, owner: str) -> None:
    for lease in (begin(quiet, owner, ChunkTask.IMPORT), begin(quiet, make_tenant(quiet))):
        let_pass(quiet, lease, 100)
        release(quiet, lease)
    assert used(quiet, owner) == 0


def test_time_leaves_the_window_bit_by_bit_and_is_deleted_then(quiet: Database, owner: str) -> None:
    add_time(quiet, owner, days_ago=1, minutes=10)
    # Six of its ten minutes lie within the last 30 days.
    add_time(quiet, owner, days_ago=30 - 6 / (24 * 60), minutes=10)
    add_time(quiet, owner, days_ago=30.01, minutes=10)
    assert used(quiet, owner) == 16 * 60
    clean_rows(quiet, event_days=7)
    with quiet.system() as session:
        count = session.scalar(
            select(func.count()).select_from(TrainingTime).where(TrainingTime.tenant_id == owner)
        )
    assert count == 2
    assert used(quiet, owner) == 16 * 60


def test_running_training_over_the_quota_ends_failed_with_its_code(
    quiet: Database, owner: str
) -> None:
    lease, other = begin(quiet, owner), begin(quiet, make_tenant(quiet))
    for each in (lease, other):
        let_pass(quiet, each, 10)
    with quiet.system() as session:
        set_quotas(session, session.get_one(Tenant, owner).name, max_training_minutes=2)
    assert sweep_once(quiet, max_kills=5, max_training_minutes=1000).overspent == 0
    add_time(quiet, owner, days_ago=1, minutes=2)
    assert sweep_once(quiet, max_kills=5, max_training_minutes=1000).overspent == 1
    job = look_at_job(quiet, owner, lease.job_id)
    assert (job.state, job.stop_reason) == (JobState.CANCELLING, StopReason.TRAINING_MINUTES)
    # Its worker learns of it as of a cancel, and lets go.
    with quiet.tenant(owner) as session:
        assert look_at_lease(session, lease) == JobState.CANCELLING
        record_stopped(session, lease)
    job = look_at_job(quiet, owner, lease.job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "too_many_training_minutes"
    assert "max_training_minutes of 2" in job.error["detail"]
    assert look_at_job(quiet, other.tenant_id, other.job_id).state == JobState.RUNNING


def test_training_whose_worker_died_ends_with_the_code_too(quiet: Database, owner: str) -> None:
    lease = begin(quiet, owner)
    let_pass(quiet, lease, 70)
    sweep_once(quiet, max_kills=5, max_training_minutes=1)
    with quiet.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == lease.chunk_id)
            .values(lease_until=func.now() - timedelta(seconds=1))
        )
    sweep_once(quiet, max_kills=5, max_training_minutes=1)
    job = look_at_job(quiet, owner, lease.job_id)
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "too_many_training_minutes")


def test_training_that_passes_the_quota_stops_between_two_steps_and_keeps_its_metrics(
    settings: Settings, quiet: Database, objects: ObjectStore, owner: str
) -> None:
    with one_torch_thread():
        training = Training(settings, quiet, objects, owner)
        attempt = training.attempt()

        def use_up() -> None:
            add_time(quiet, owner, days_ago=0, minutes=1)
            sweep_once(quiet, max_kills=5, max_training_minutes=1)
            with quiet.tenant(owner) as session:
                assert look_at_lease(session, attempt.lease) == JobState.CANCELLING
            # As the heartbeat does.
            attempt.held.cancelled.set()

        attempt.stop_at(7, use_up)
        let_go(training.process, attempt.held)
    assert attempt.steps[-1] == 6
    job = training.job()
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "too_many_training_minutes")
    assert {step for step, *_ in training.metrics()} == {1}


def entries() -> list[ShardEntry]:
    return [entry(number, ("cat", "dog")[number % 2]) for number in range(20)]


@pytest.fixture
def api(settings: Settings, objects: ObjectStore, database: Database, tenant_id: str) -> Api:
    """The API with a quota of ten minutes, as a tenant with a dataset."""
    limited = settings.model_copy(update={"max_training_minutes": 10})
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries())
        freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
    return Api(make_app(limited, objects), make_key(database, settings, tenant_id))


FINETUNE = {"kind": "finetune", "model": "pets", "input": {"dataset": "pets"}}


def test_submission_over_the_quota_is_refused_by_its_name(
    api: Api, database: Database, tenant_id: str
) -> None:
    first = api("POST", "/v1/jobs", json=FINETUNE, headers={"Idempotency-Key": "once"})
    assert first.status_code == 202, first.text
    add_time(database, tenant_id, days_ago=29, minutes=4)
    add_time(database, tenant_id, days_ago=1, minutes=8)
    refused = api("POST", "/v1/jobs", json=FINETUNE)
    assert (refused.status_code, refused.json["code"]) == (429, "too_many_training_minutes")
    assert refused.json["errors"] == [
        {
            "pointer": "max_training_minutes",
            "detail": "trained for 12 minutes within 30 days; at most 10",
        }
    ]
    # Two of the older four minutes have to be thirty days ago.
    day = 24 * 3600
    assert abs(int(refused.headers["Retry-After"]) - (day - 2 * 60)) <= 60
    # Nothing else is held up, and what was accepted stays so.
    assert api("POST", "/v1/jobs", json=import_body()).status_code == 202
    again = api("POST", "/v1/jobs", json=FINETUNE, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json["id"]) == (202, first.json["id"])


def test_tenant_sees_its_quotas_and_what_it_uses(
    api: Api, database: Database, tenant_id: str
) -> None:
    add_time(database, tenant_id, days_ago=1, minutes=7.5)
    api("POST", "/v1/jobs", json=import_body())
    shown = api("GET", "/v1/quotas").json
    assert shown["max_training_minutes"] == {"limit": 10, "used": 7}
    assert shown["max_open_jobs"]["used"] == 1
    assert shown["max_submissions_per_minute"]["used"] == 1
    with database.system() as session:
        set_quotas(session, session.get_one(Tenant, tenant_id).name, max_open_jobs=5)
    assert api("GET", "/v1/quotas").json["max_open_jobs"] == {"limit": 5, "used": 1}
