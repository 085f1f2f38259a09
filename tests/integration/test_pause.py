"""Pausing and resuming in every state, on real PostgreSQL: nothing is claimed, nothing is lost."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch.sweep import Swept, sweep_once
from app.errors import ConflictError, NotFoundError
from app.jobs.cancel import cancel_job
from app.jobs.claim import look_at_lease, release_chunk
from app.jobs.pause import pause_job, resume_job
from app.jobs.record import record_part, record_plan, record_prefix
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.submit import submit_ingest
from app.jobs.tables import Chunk
from app.uploads.tables import UploadState
from tests.factories import add_job, add_upload, make_tenant
from tests.jobs import (
    add_chunk,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    finish,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    make_job,
    record_all,
    rows_of,
    try_claim,
)


def pause(db: Database, tenant_id: str, job_id: str) -> None:
    with db.tenant(tenant_id) as session:
        assert pause_job(session, tenant_id, job_id).state == JobState.PAUSED


def resume(db: Database, tenant_id: str, job_id: str) -> str:
    with db.tenant(tenant_id) as session:
        return resume_job(session, tenant_id, job_id).state


def test_nothing_of_a_paused_job_is_claimed_until_it_is_resumed(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    pause(quiet, owner, job_id)
    assert try_claim(quiet, owner, chunk) is None
    sweep_once(quiet, max_kills=5)
    assert look_at_job(quiet, owner, job_id).state == JobState.PAUSED
    queued_at = look_at_job(quiet, owner, job_id).queued_at
    assert resume(quiet, owner, job_id) == JobState.QUEUED
    assert look_at_job(quiet, owner, job_id).queued_at == queued_at
    finish(quiet, owner, chunk)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_worker_gives_back_what_it_holds_and_every_item_is_recorded_once_after_the_resume(
    quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 4, 2)
    held, whole = claim(quiet, owner, chunks[0]), claim(quiet, owner, chunks[1])
    running_at = look_at_job(quiet, owner, job_id).running_at
    pause(quiet, owner, job_id)
    with quiet.tenant(owner) as session:
        assert look_at_lease(session, held) == JobState.PAUSED
        record_prefix(session, held, rows_of(held, 1, failed=[0]))
        assert release_chunk(session, whole)
    rows = [look_at_chunk(quiet, chunk) for chunk in chunks]
    assert [(row.state, row.lo, row.hi, row.kills) for row in rows] == [
        (ChunkState.PENDING, 1, 4, 0),
        (ChunkState.PENDING, 4, 6, 0),
    ]
    assert try_claim(quiet, owner, chunks[0]) is None
    assert resume(quiet, owner, job_id) == JobState.RUNNING
    assert look_at_job(quiet, owner, job_id).running_at == running_at
    for chunk in chunks:
        finish(quiet, owner, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed) == (5, 1)


def test_record_that_comes_in_a_paused_job_is_kept_and_the_last_one_closes_it(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    pause(quiet, owner, job_id)
    record_all(quiet, held)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_bells_of_a_paused_job_free_their_places_in_the_queue(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 1, 1)
    other_id, (other,) = make_job(quiet, owner, 1)
    with quiet.system() as session:
        session.execute(
            update(Chunk).where(Chunk.id.in_([*chunks, other])).values(last_rung_at=func.now())
        )
    pause(quiet, owner, job_id)
    assert sweep_once(quiet, max_kills=5) == Swept(silenced=2)
    assert [look_at_chunk(quiet, chunk).last_rung_at for chunk in chunks] == [None, None]
    assert look_at_chunk(quiet, other).last_rung_at is not None
    assert look_at_job(quiet, owner, other_id).state == JobState.QUEUED


def test_worker_that_dies_in_a_paused_job_leaves_its_chunk_for_the_resume(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    claim(quiet, owner, chunk)
    pause(quiet, owner, job_id)
    let_lease_end(quiet, chunk)
    assert try_claim(quiet, owner, chunk) is None
    sweep_once(quiet, max_kills=5)
    assert look_at_chunk(quiet, chunk).state == ChunkState.PENDING
    resume(quiet, owner, job_id)
    finish(quiet, owner, chunk)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_job_paused_while_its_input_is_read_goes_on_reading(quiet: Database, owner: str) -> None:
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, state=JobState.VALIDATING)
        plan_id = add_chunk(session, job, ChunkTask.PLAN).id
    plan = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    with quiet.tenant(owner) as session:
        record_part(session, plan, cursor={"planned": 2}, added=2, lease_seconds=30)
        add_chunk(session, job, ChunkTask.PREDICT, 0, 2)
    pause(quiet, owner, job.id)
    with quiet.tenant(owner) as session:
        assert release_chunk(session, plan)
    assert try_claim(quiet, owner, plan_id, task=ChunkTask.PLAN) is None
    assert resume(quiet, owner, job.id) == JobState.VALIDATING
    plan = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    assert plan.cursor == {"planned": 2}
    # And paused again, at the moment in which the plan is done.
    pause(quiet, owner, job.id)
    with quiet.tenant(owner) as session:
        record_plan(session, plan)
    assert look_at_job(quiet, owner, job.id).state == JobState.PAUSED
    assert resume(quiet, owner, job.id) == JobState.QUEUED
    assert look_at_job(quiet, owner, job.id).queued_at is not None
    (chunk,) = set(chunk_ids(quiet, job.id)) - {plan_id}
    finish(quiet, owner, chunk)
    assert_closed(quiet, owner, job.id, JobState.SUCCEEDED)


def test_ingest_that_never_ran_is_queued_again_although_its_total_is_open(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        upload = add_upload(session, owner, state=UploadState.STORED)
        job_id = submit_ingest(session, owner, upload.id).id
    pause(quiet, owner, job_id)
    assert resume(quiet, owner, job_id) == JobState.QUEUED


def test_paused_job_can_be_cancelled(quiet: Database, owner: str) -> None:
    job_id, _ = make_job(quiet, owner, 3)
    pause(quiet, owner, job_id)
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, job_id)
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job_id, JobState.CANCELLED)


def test_pause_and_resume_twice_are_one_and_after_a_stop_conflicts(
    quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, 1)
    assert resume(quiet, owner, job_id) == JobState.QUEUED
    pause(quiet, owner, job_id)
    paused_at = look_at_job(quiet, owner, job_id).paused_at
    pause(quiet, owner, job_id)
    assert look_at_job(quiet, owner, job_id).paused_at == paused_at
    resume(quiet, owner, job_id)
    assert resume(quiet, owner, job_id) == JobState.QUEUED
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, job_id)
    for code in ("job_cancelling", "job_ended"):
        for change in (pause_job, resume_job):
            with pytest.raises(ConflictError) as told, quiet.tenant(owner) as session:
                change(session, owner, job_id)
            assert told.value.code == code
        sweep_once(quiet, max_kills=5)


@pytest.mark.parametrize("change", [pause_job, resume_job])
def test_tenant_cannot_hold_the_job_of_another(quiet: Database, owner: str, change) -> None:
    job_id, _ = make_job(quiet, owner, 1)
    other = make_tenant(quiet)
    with pytest.raises(NotFoundError), quiet.tenant(other) as session:
        change(session, other, job_id)
    assert look_at_job(quiet, owner, job_id).state == JobState.QUEUED


def test_pause_resume_record_and_sweep_at_the_same_moment_lose_nothing(
    quiet: Database, owner: str
) -> None:
    for _ in range(6):
        job_id, chunks = make_job(quiet, owner, 2, 3)
        held = claim(quiet, owner, chunks[0])

        def record(held=held) -> None:
            with quiet.tenant(owner) as session:
                record_prefix(session, held, rows_of(held, 1))

        answers = at_once(
            partial(pause, quiet, owner, job_id),
            record,
            partial(sweep_once, quiet, max_kills=5),
            partial(sweep_once, quiet, max_kills=5),
        )
        assert not [each for each in answers if isinstance(each, BaseException)]
        resume(quiet, owner, job_id)
        for chunk in chunks:
            finish(quiet, owner, chunk)
        assert assert_closed(quiet, owner, job_id, JobState.SUCCEEDED).succeeded == 5
