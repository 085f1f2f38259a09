"""Deadlines and failure budgets on real PostgreSQL: the job stops, and its counts sum."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch.sweep import sweep_once
from app.errors import InvalidInputError
from app.jobs.cancel import cancel_job
from app.jobs.claim import look_at_lease
from app.jobs.limits import Limits
from app.jobs.pause import pause_job
from app.jobs.record import record_prefix, record_stopped
from app.jobs.results import page_results
from app.jobs.states import ChunkState, JobState, StopReason
from app.jobs.submit import submit_predict
from app.jobs.tables import Job
from app.locations import ANYWHERE
from tests.factories import add_version
from tests.jobs import (
    assert_closed,
    claim,
    finish,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    make_job,
    rows_of,
    try_claim,
)


def let_deadline_pass(db: Database, job_id: str) -> None:
    """Put the deadline into the past: the same as waiting for it."""
    with db.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(deadline_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1))
        )


def test_job_past_its_deadline_ends_expired_once_its_worker_has_let_go(
    quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 4, 5)
    finish(quiet, owner, chunks[0])
    held = claim(quiet, owner, chunks[1])
    let_deadline_pass(quiet, job_id)
    sweep_once(quiet, max_kills=5)
    job = look_at_job(quiet, owner, job_id)
    assert (job.state, job.stop_reason) == (JobState.CANCELLING, StopReason.DEADLINE)
    assert (job.succeeded, job.expired) == (3, 5)
    with quiet.tenant(owner) as session:
        assert look_at_lease(session, held) == JobState.CANCELLING
        record_stopped(session, held, rows_of(held, 1))
    job = assert_closed(quiet, owner, job_id, JobState.EXPIRED)
    assert (job.succeeded, job.cancelled, job.expired) == (4, 0, 8)
    assert [look_at_chunk(quiet, chunk).state for chunk in chunks] == [
        ChunkState.DONE,
        ChunkState.EXPIRED,
        ChunkState.EXPIRED,
    ]
    with quiet.tenant(owner) as session:
        assert len(page_results(session, owner, job).items) == 4


def test_nothing_of_a_job_past_its_deadline_is_claimed(quiet: Database, owner: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    job_id, chunks = make_job(quiet, owner, 1, 1, deadline_at=later)
    finish(quiet, owner, chunks[0])
    let_deadline_pass(quiet, job_id)
    assert try_claim(quiet, owner, chunks[1]) is None
    sweep_once(quiet, max_kills=5)
    assert assert_closed(quiet, owner, job_id, JobState.EXPIRED).expired == 1


def test_worker_that_died_does_not_keep_an_expired_job_open(quiet: Database, owner: str) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    claim(quiet, owner, chunk)
    let_deadline_pass(quiet, job_id)
    sweep_once(quiet, max_kills=5)
    let_lease_end(quiet, chunk)
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job_id, JobState.EXPIRED)


def test_deadline_of_a_paused_job_passes_too(quiet: Database, owner: str) -> None:
    job_id, _ = make_job(quiet, owner, 3)
    with quiet.tenant(owner) as session:
        pause_job(session, owner, job_id)
    let_deadline_pass(quiet, job_id)
    sweep_once(quiet, max_kills=5)
    assert assert_closed(quiet, owner, job_id, JobState.EXPIRED).expired == 3


def test_job_that_was_cancelled_before_its_deadline_ends_cancelled(
    quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, 3)
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, job_id)
    let_deadline_pass(quiet, job_id)
    sweep_once(quiet, max_kills=5)
    assert assert_closed(quiet, owner, job_id, JobState.CANCELLED).cancelled == 3


def test_deadline_in_the_past_is_refused_and_nothing_is_submitted(
    database: Database, tenant_id: str
) -> None:
    def submit(deadline: datetime) -> Job:
        with database.tenant(tenant_id) as session:
            return submit_predict(
                session,
                tenant_id,
                source={"prefix": "s3://photos/a"},
                model=add_version(session, tenant_id).id,
                options={},
                own_bucket="darkroom",
                locations=ANYWHERE,
                limits=Limits(deadline_at=deadline),
            )

    with pytest.raises(InvalidInputError) as told:
        submit(datetime.now(UTC) - timedelta(seconds=5))
    assert told.value.code == "deadline_passed"
    assert told.value.errors[0]["pointer"] == "/deadline"
    later = datetime.now(UTC) + timedelta(hours=1)
    assert submit(later).deadline_at == later


def test_more_failed_items_than_the_budget_stop_the_job(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 4, 4, 4, max_failed_items=2)
    finish(quiet, owner, chunks[0], 1, 2)
    assert look_at_job(quiet, owner, job_id).state == JobState.RUNNING
    held = claim(quiet, owner, chunks[1])
    finish(quiet, owner, chunks[2], 8)
    job = look_at_job(quiet, owner, job_id)
    assert (job.state, job.stop_reason) == (JobState.CANCELLING, StopReason.FAILURES)
    sweep_once(quiet, max_kills=5)
    with quiet.tenant(owner) as session:
        record_stopped(session, held, rows_of(held, 1))
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.succeeded, job.failed, job.cancelled) == (6, 3, 3)
    assert job.error is not None
    assert job.error["code"] == "too_many_failures"
    assert "3 of 12 items failed" in job.error["detail"]
    assert "2 items" in job.error["detail"]


def test_larger_fraction_of_failed_items_than_the_budget_stops_the_job(
    quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 5, 5, max_failed_fraction=0.2)
    finish(quiet, owner, chunks[0], 0, 1)
    assert look_at_job(quiet, owner, job_id).state == JobState.RUNNING
    lease = claim(quiet, owner, chunks[1])
    with quiet.tenant(owner) as session:
        record_prefix(session, lease, rows_of(lease, 1, failed=[5]))
    sweep_once(quiet, max_kills=5)
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.succeeded, job.failed, job.cancelled) == (3, 3, 4)
    assert (job.error or {})["code"] == "too_many_failures"


def test_fraction_counts_only_once_the_total_is_final(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 2, 2, max_failed_fraction=0.25, sealed_at=None)
    finish(quiet, owner, chunks[0], 0, 1)
    assert look_at_job(quiet, owner, job_id).state == JobState.RUNNING


def test_last_recording_that_exceeds_the_budget_closes_the_job_as_failed(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3, max_failed_items=0)
    finish(quiet, owner, chunk, 1)
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.succeeded, job.failed, job.cancelled) == (2, 1, 0)
    assert (job.error or {})["code"] == "too_many_failures"


def test_job_within_its_budget_ends_as_without_one(quiet: Database, owner: str) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 4, max_failed_items=1, max_failed_fraction=0.25)
    finish(quiet, owner, chunk, 1)
    assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
