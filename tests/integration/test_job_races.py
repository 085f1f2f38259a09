"""Every two transactions that may meet on one job, in both orders, on real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import Session

from app import points
from app.db.session import Database
from app.dispatch.sweep import sweep_once
from app.errors import ConflictError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.pause import pause_job, resume_job
from app.jobs.record import record_chunk, record_part, record_plan, record_stopped
from app.jobs.states import ChunkTask, JobState
from app.jobs.tables import Job
from tests.factories import add_job
from tests.jobs import (
    add_chunk,
    assert_closed,
    chunk_ids,
    claim,
    look_at_job,
    make_job,
    rows_of,
    try_claim,
)
from tests.races import Race, record, take, tell


@pytest.fixture
def closings() -> Iterator[list[str]]:
    """Grows with every job that is being closed by its last record."""
    seen: list[str] = []
    points.arm(lambda point: seen.append(point) if point == "close" else None)
    yield seen
    points.arm(None)


def test_of_two_last_records_the_second_closes_the_job(
    quiet: Database, owner: str, race: Race, closings: list[str]
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 2)
    first, other = (claim(quiet, owner, chunk) for chunk in chunks)
    with quiet.tenant(owner) as session:
        record_chunk(session, first, rows_of(first))
        second = race(lambda: record(quiet, other))
        second.waits()
        assert closings == []
    assert second.answer() == "recorded"
    assert len(closings) == 1
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_cancel_that_meets_the_last_record_comes_too_late(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    with quiet.tenant(owner) as session:
        record_chunk(session, held, rows_of(held))
        second = race(lambda: tell(quiet, owner, job_id, cancel_job))
        second.waits()
    assert isinstance(second.answer(), ConflictError)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("told", "outcome"),
    [(cancel_job, JobState.CANCELLED), (pause_job, JobState.SUCCEEDED)],
)
def test_last_record_that_meets_a_cancel_or_a_pause_keeps_its_items_and_ends_the_job(
    quiet: Database,
    owner: str,
    race: Race,
    told: Callable[[Session, str, str], Job],
    outcome: JobState,
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    with quiet.tenant(owner) as session:
        told(session, owner, job_id)
        second = race(lambda: record(quiet, held))
        second.waits()
    assert second.answer() == "recorded"
    assert assert_closed(quiet, owner, job_id, outcome).succeeded == 3


def test_pause_that_meets_the_last_record_comes_too_late(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    with quiet.tenant(owner) as session:
        record_chunk(session, held, rows_of(held))
        second = race(lambda: tell(quiet, owner, job_id, pause_job))
        second.waits()
    assert isinstance(second.answer(), ConflictError)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_job_that_is_cancelled_while_a_claim_is_under_way_waits_for_that_worker(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 2)
    record(quiet, claim(quiet, owner, chunks[0]))
    with quiet.tenant(owner) as session:
        lease = take(session, owner, chunks[1])
        assert lease is not None

        def cancel_and_sweep() -> int:
            tell(quiet, owner, job_id, cancel_job)
            return sweep_once(quiet, max_kills=5).stopped

        assert race(cancel_and_sweep).passes() == 1
        assert look_at_job(quiet, owner, job_id).state == JobState.CANCELLING
    assert look_at_job(quiet, owner, job_id).state == JobState.CANCELLING
    with quiet.tenant(owner) as session:
        record_stopped(session, lease)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.succeeded, job.cancelled) == (3, 2)


def test_of_two_workers_that_let_go_of_a_cancelled_job_the_second_ends_it(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 2)
    first, other = (claim(quiet, owner, chunk) for chunk in chunks)
    tell(quiet, owner, job_id, cancel_job)

    def let_go() -> None:
        with quiet.tenant(owner) as session:
            record_stopped(session, other, rows_of(other, 1))

    with quiet.tenant(owner) as session:
        record_stopped(session, first)
        second = race(let_go)
        second.waits()
    assert second.answer() is None
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.succeeded, job.cancelled) == (1, 4)


def planned(db: Database, tenant_id: str) -> tuple[str, Lease]:
    """A job whose plan has cut one chunk of two items, and the plan's lease."""
    with db.tenant(tenant_id) as session:
        job = add_job(session, tenant_id, state=JobState.VALIDATING)
        plan_id = add_chunk(session, job, ChunkTask.PLAN).id
    lease = claim(db, tenant_id, plan_id, task=ChunkTask.PLAN)
    with db.tenant(tenant_id) as session:
        record_part(session, lease, cursor={"planned": 2}, added=2, lease_seconds=30)
        add_chunk(session, job, ChunkTask.PREDICT, 0, 2)
    return job.id, lease


def finish_planned(db: Database, tenant_id: str, job_id: str) -> None:
    for chunk_id in chunk_ids(db, job_id):
        lease = try_claim(db, tenant_id, chunk_id)
        if lease is not None:
            record(db, lease)
    assert_closed(db, tenant_id, job_id, JobState.SUCCEEDED)


def test_chunk_is_not_claimed_before_its_plan_is_sealed(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, plan = planned(quiet, owner)
    (chunk_id,) = [chunk for chunk in chunk_ids(quiet, job_id) if chunk != plan.chunk_id]
    with quiet.tenant(owner) as session:
        record_plan(session, plan)
        assert race(lambda: try_claim(quiet, owner, chunk_id)).passes() is None
    finish_planned(quiet, owner, job_id)


@pytest.mark.parametrize("told", [pause_job, resume_job])
def test_pause_or_resume_that_meets_the_end_of_a_plan_loses_neither(
    quiet: Database, owner: str, race: Race, told: Callable[[Session, str, str], Job]
) -> None:
    for plan_first in (True, False):
        job_id, plan = planned(quiet, owner)
        if told is resume_job:
            tell(quiet, owner, job_id, pause_job)

        def seal(plan: Lease = plan) -> None:
            with quiet.tenant(owner) as session:
                record_plan(session, plan)

        def say(job_id: str = job_id) -> JobState:
            return tell(quiet, owner, job_id, told)

        with quiet.tenant(owner) as session:
            if plan_first:
                record_plan(session, plan)
                second = race(say)
            else:
                told(session, owner, job_id)
                second = race(seal)
            second.waits()
        assert not isinstance(second.answer(), BaseException)
        tell(quiet, owner, job_id, resume_job)
        assert look_at_job(quiet, owner, job_id).state == JobState.QUEUED
        finish_planned(quiet, owner, job_id)
