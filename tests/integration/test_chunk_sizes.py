"""How many items a full chunk has: about ten seconds of work, by what was measured before."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, text, update

from app.db.session import Database
from app.jobs.plan import (
    _RECENT_JOBS,
    CHUNK_SECONDS,
    MAX_CHUNK_ITEMS,
    MIN_CHUNK_ITEMS,
    UNMEASURED_CHUNK_ITEMS,
)
from app.jobs.states import JobState
from app.jobs.submit import submit_predict
from app.jobs.tables import Job
from app.locations import ANYWHERE
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_job, add_version
from tests.plans import BUCKET, run_plan


class Measured:
    """A model version with the jobs that it has recognised."""

    def __init__(
        self, db: Database, store: ObjectStore, settings: Settings, tenant_id: str
    ) -> None:
        self.db, self.store, self.settings, self.tenant_id = db, store, settings, tenant_id
        store.ensure_bucket(BUCKET)
        with db.tenant(tenant_id) as session:
            self.version_id = add_version(session, tenant_id).id

    def add(self, items: int, *, seconds: float, count: int = 1) -> None:
        """Jobs of so many items in so long, which ended just now."""
        with self.db.system() as session:
            for _ in range(count):
                job = add_job(session, self.tenant_id)
                session.execute(
                    update(Job)
                    .where(Job.id == job.id)
                    .values(
                        model_version_id=self.version_id,
                        state=JobState.SUCCEEDED,
                        total=items,
                        succeeded=items,
                        running_at=func.clock_timestamp() - timedelta(seconds=seconds),
                        ended_at=func.clock_timestamp(),
                    )
                )

    def chunk_size(self) -> int | None:
        """Items of a full chunk of the next job."""
        with self.db.tenant(self.tenant_id) as session:
            job_id = submit_predict(
                session,
                self.tenant_id,
                source={"items": [{"key": f"s3://{BUCKET}/1.png"}]},
                model=self.version_id,
                options={},
                own_bucket="darkroom",
                locations=ANYWHERE,
            ).id
        return run_plan(self.db, self.store, self.settings, self.tenant_id, job_id).chunk_items


@pytest.fixture
def model(database: Database, objects: ObjectStore, settings: Settings, tenant_id: str) -> Measured:
    return Measured(database, objects, settings, tenant_id)


def test_model_that_was_never_measured_gets_chunks_of_a_fixed_size(model: Measured) -> None:
    assert model.chunk_size() == UNMEASURED_CHUNK_ITEMS


@pytest.mark.parametrize(
    ("a_second", "expected"),
    [(100, 100 * CHUNK_SECONDS), (1, MIN_CHUNK_ITEMS), (100_000, MAX_CHUNK_ITEMS)],
)
def test_chunk_is_ten_seconds_of_work_within_bounds(
    model: Measured, a_second: int, expected: int
) -> None:
    model.add(a_second * 100, seconds=100)
    assert model.chunk_size() == pytest.approx(expected, rel=0.01)


def test_small_jobs_measure_nothing_and_hide_a_measured_one_only_when_they_are_many(
    model: Measured,
) -> None:
    model.add(10_000, seconds=100)
    model.add(MIN_CHUNK_ITEMS - 1, seconds=0.001, count=_RECENT_JOBS - 1)
    assert model.chunk_size() == pytest.approx(1000, rel=0.01)
    model.add(MIN_CHUNK_ITEMS - 1, seconds=0.001)
    assert model.chunk_size() == UNMEASURED_CHUNK_ITEMS


def test_time_in_which_a_job_was_held_is_no_measure(model: Measured) -> None:
    model.add(10_000, seconds=100)
    with model.db.system() as session:
        session.execute(
            text("UPDATE jobs SET paused_at = now() WHERE model_version_id = :id"),
            {"id": model.version_id},
        )
    assert model.chunk_size() == UNMEASURED_CHUNK_ITEMS
