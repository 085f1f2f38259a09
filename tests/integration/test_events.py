"""The outbox: an event is there if and only if its change was committed, and none is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import delete, select, update

from app.db.session import Database
from app.dispatch.stops import end_stopped_jobs
from app.errors import FencedError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.events import EVENT_TYPES, Event
from app.jobs.pause import pause_job, resume_job
from app.jobs.record import record_chunk, record_failure, record_plan, record_prefix
from app.jobs.states import ChunkTask, JobState
from app.jobs.submit import submit_import, submit_predict
from app.jobs.tables import Job
from app.locations import ANYWHERE
from tests.factories import add_version
from tests.jobs import (
    add_planned_job,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    finish,
    look_at_job,
    lose_worker,
    record_all,
    rows_of,
)


def events_of(db: Database, job_id: str) -> list[Event]:
    with db.system() as session:
        return list(
            session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.number))
        )


def types_of(db: Database, job_id: str) -> list[str]:
    events = events_of(db, job_id)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    return [event.type for event in events]


def test_events_tell_a_jobs_life_in_order(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job_id = submit_import(
            session,
            tenant_id,
            model="squeeze",
            arch="squeezenet1_0",
            weights="torchvision:DEFAULT",
            classes="imagenet",
        ).id
    (chunk,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, chunk, task=ChunkTask.IMPORT)
    with database.tenant(tenant_id) as session:
        record_failure(session, lease, {"code": "weights_unreachable", "detail": "nobody there"})
    assert types_of(database, job_id) == ["job.queued", "job.running", "job.failed"]
    first, *_, last = events_of(database, job_id)
    assert first.data["state"] == JobState.QUEUED
    assert last.data["error_code"] == "weights_unreachable"
    assert first.created_at < last.created_at


def test_plan_that_finds_nothing_tells_how_the_job_failed(
    database: Database, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        add_version(session, tenant_id)
        job_id = submit_predict(
            session,
            tenant_id,
            source={"items": [{"key": "s3://photos/1.png"}]},
            model="pets@1",
            options={},
            own_bucket="darkroom",
            locations=ANYWHERE,
        ).id
    (chunk,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, chunk, task=ChunkTask.PLAN)
    with database.tenant(tenant_id) as session:
        record_plan(session, lease)
    assert types_of(database, job_id) == ["job.validating", "job.progress", "job.failed"]
    assert events_of(database, job_id)[-1].data["error_code"] == "input_empty"


def test_recordings_at_the_same_moment_leave_no_hole_and_end_with_the_last_event(
    database: Database, tenant_id: str
) -> None:
    sizes = [3] * 12
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, *sizes)
    leases = [claim(database, tenant_id, chunk) for chunk in chunk_ids(database, job_id)]

    def recorder(mine: int) -> Callable[[], None]:
        def record() -> None:
            for lease in leases[mine::4]:
                record_all(database, lease)

        return record

    assert at_once(*(recorder(mine) for mine in range(4))) == [None] * 4
    assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    assert types_of(database, job_id) == [
        "job.running",
        *["job.progress"] * len(sizes),
        "job.succeeded",
    ]
    done = [event.data["counts"]["done"] for event in events_of(database, job_id)]
    assert done == [0, *range(3, 37, 3), 36]


def test_event_is_there_only_if_its_change_was_committed(
    database: Database, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 3)
    (chunk,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, chunk)
    with pytest.raises(ZeroDivisionError):
        _lose_before_commit(database, lease)
    assert types_of(database, job_id) == ["job.running"]
    lose_worker(database, chunk)
    again = claim(database, tenant_id, chunk)
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_chunk(session, lease, rows_of(lease))
    with database.tenant(tenant_id) as session:
        record_prefix(session, again, rows_of(again, 1))
    finish(database, tenant_id, chunk, 2)
    assert types_of(database, job_id) == [
        "job.running",
        "job.progress",
        "job.progress",
        "job.partially_succeeded",
    ]


def _lose_before_commit(db: Database, lease: Lease) -> None:
    with db.tenant(lease.tenant_id) as session:
        record_chunk(session, lease, rows_of(lease))
        raise ZeroDivisionError("lost before COMMIT")


def test_cancel_that_changes_nothing_writes_no_event(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 3)

    def cancel() -> None:
        with database.tenant(tenant_id) as session:
            cancel_job(session, tenant_id, job_id)

    assert at_once(cancel, cancel, cancel) == [None] * 3
    end_stopped_jobs(database)
    cancel()
    assert types_of(database, job_id) == ["job.cancelling", "job.cancelled"]
    assert look_at_job(database, tenant_id, job_id).event_number == 2


def test_pause_and_resume_are_told(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 3)
    for change in (pause_job, pause_job, resume_job):
        with database.tenant(tenant_id) as session:
            change(session, tenant_id, job_id)
    assert types_of(database, job_id) == ["job.paused", "job.queued"]


def test_number_of_an_event_cannot_be_taken_twice(database: Database, tenant_id: str) -> None:
    """A test of the test: without the lock's number two events would share one."""
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 3)
    (chunk,) = chunk_ids(database, job_id)
    claim(database, tenant_id, chunk)
    with database.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(event_number=0))
    with pytest.raises(Exception, match="pk_events"), database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job_id)
    with database.system() as session:
        session.execute(delete(Event).where(Event.job_id == job_id))
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job_id)


def test_every_state_but_the_unseen_one_has_an_event_type() -> None:
    assert {f"job.{state.value}" for state in JobState} - set(EVENT_TYPES) == {"job.finalizing"}
