"""Cancelling in every state, on real PostgreSQL: the job ends, and its counts sum."""

from __future__ import annotations

from functools import partial

import pytest

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.dispatch.sweep import sweep_once
from app.errors import ConflictError, FencedError, NotFoundError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease, look_at_lease
from app.jobs.ingest import record_ingested, record_survey
from app.jobs.progress import get_job
from app.jobs.record import (
    record_chunk,
    record_failure,
    record_part,
    record_plan,
    record_prefix,
    record_stopped,
)
from app.jobs.states import ChunkTask, JobKind, JobState
from app.jobs.submit import submit_finetune, submit_ingest
from app.models.states import VersionState
from app.models.tables import ModelVersion
from app.training.recipe import TrainingRecipe
from app.uploads.tables import Upload, UploadState
from tests.factories import add_job, add_upload, entry, make_tenant
from tests.jobs import (
    add_chunk,
    add_planned_job,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    finish,
    let_lease_end,
    look_at_job,
    make_job,
    record_all,
    rows_of,
    try_claim,
)


def cancel(db: Database, tenant_id: str, job_id: str) -> None:
    with db.tenant(tenant_id) as session:
        assert cancel_job(session, tenant_id, job_id).state == JobState.CANCELLING


def test_queued_job_ends_with_the_next_sweep(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 4)
    cancel(quiet, owner, job_id)
    assert try_claim(quiet, owner, chunks[0]) is None
    sweep_once(quiet, max_kills=5)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.total, job.cancelled) == (7, 7)


def test_running_job_stays_cancelling_until_its_worker_lets_go(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 4, 5)
    done, held = claim(quiet, owner, chunks[0]), claim(quiet, owner, chunks[1])
    record_all(quiet, done)
    cancel(quiet, owner, job_id)
    sweep_once(quiet, max_kills=5)
    job = look_at_job(quiet, owner, job_id)
    assert (job.state, job.succeeded, job.cancelled) == (JobState.CANCELLING, 3, 5)
    with quiet.tenant(owner) as session:
        assert look_at_lease(session, held) == JobState.CANCELLING
        record_stopped(session, held, rows_of(held, 1, failed=[3]))
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.succeeded, job.failed, job.cancelled) == (3, 1, 8)


def test_chunk_that_ends_while_its_job_is_cancelled_is_kept(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 4)
    held = claim(quiet, owner, chunks[0])
    cancel(quiet, owner, job_id)
    record_all(quiet, held)
    sweep_once(quiet, max_kills=5)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.succeeded, job.cancelled) == (3, 4)


def test_prefix_recorded_while_the_job_is_cancelled_counts_with_its_rest(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 5)
    held = claim(quiet, owner, chunk)
    cancel(quiet, owner, job_id)
    with quiet.tenant(owner) as session:
        record_prefix(session, held, rows_of(held, 2))
    sweep_once(quiet, max_kills=5)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.succeeded, job.cancelled) == (2, 3)


def test_worker_that_died_does_not_keep_a_cancelled_job_open(quiet: Database, owner: str) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 5)
    lost = claim(quiet, owner, chunk)
    cancel(quiet, owner, job_id)
    let_lease_end(quiet, chunk)
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    with pytest.raises(FencedError), quiet.tenant(owner) as session:
        record_chunk(session, lost, rows_of(lost))


def test_failure_in_a_cancelled_job_ends_it_as_cancelled(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 5, 2)
    held = claim(quiet, owner, chunks[0])
    cancel(quiet, owner, job_id)
    with quiet.tenant(owner) as session:
        record_failure(session, held, {"code": "x", "detail": "y"})
    sweep_once(quiet, max_kills=5)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert job.error is None


def test_cancel_while_the_input_is_read_keeps_what_was_found_as_the_total(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, state=JobState.VALIDATING)
        plan_id = add_chunk(session, job, ChunkTask.PLAN).id
    plan = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    with quiet.tenant(owner) as session:
        record_part(session, plan, cursor={"planned": 6}, added=6, lease_seconds=30)
        add_chunk(session, job, ChunkTask.PREDICT, 0, 6)
    cancel(quiet, owner, job.id)
    sweep_once(quiet, max_kills=5)
    assert look_at_job(quiet, owner, job.id).state == JobState.CANCELLING
    with quiet.tenant(owner) as session:
        record_stopped(session, plan)
    ended = assert_closed(quiet, owner, job.id, JobState.CANCELLED)
    assert (ended.total, ended.cancelled) == (6, 6)
    assert ended.sealed_at is not None


def test_plan_that_ends_before_it_sees_the_cancel_does_not_bring_the_job_back(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, state=JobState.VALIDATING)
        plan_id = add_chunk(session, job, ChunkTask.PLAN).id
    plan = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    cancel(quiet, owner, job.id)
    with quiet.tenant(owner) as session:
        record_part(session, plan, cursor={"planned": 6}, added=6, lease_seconds=30)
        add_chunk(session, job, ChunkTask.PREDICT, 0, 6)
        record_plan(session, plan)
    assert look_at_job(quiet, owner, job.id).state == JobState.CANCELLING
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job.id, JobState.CANCELLED)


def test_cancelled_ingest_counts_the_members_it_never_reached(quiet: Database, owner: str) -> None:
    with quiet.tenant(owner) as session:
        upload = add_upload(session, owner, state=UploadState.STORED)
        job_id = submit_ingest(session, owner, upload.id).id
    (chunk,) = chunk_ids(quiet, job_id)
    lease = claim(quiet, owner, chunk, task=ChunkTask.INGEST)
    with quiet.tenant(owner) as session:
        record_survey(session, lease, 9, lease_seconds=30)
    cancel(quiet, owner, job_id)
    with quiet.tenant(owner) as session:
        record_stopped(session, lease)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.total, job.cancelled) == (9, 9)
    with quiet.tenant(owner) as session:
        kept = session.get_one(Upload, upload.id)
        assert kept.state == UploadState.FAILED
    with pytest.raises(FencedError), quiet.tenant(owner) as session:
        record_ingested(session, lease, archive_format="zip", label_faults=[], label_fault_count=0)


@pytest.mark.parametrize("claimed", [False, True])
def test_cancelled_training_leaves_no_version_pending(
    quiet: Database, owner: str, claimed: bool
) -> None:
    with quiet.tenant(owner) as session:
        upload = add_upload(
            session,
            owner,
            [entry(number, label, split) for number, (label, split) in enumerate(_SAMPLES)],
        )
        freeze_dataset(session, owner, name="pets", upload_id=upload.id)
        recipe = TrainingRecipe(arch="small_cnn", epochs=1)
        job = submit_finetune(session, owner, dataset="pets", model="pets", recipe=recipe)
    (chunk,) = chunk_ids(quiet, job.id)
    lease = claim(quiet, owner, chunk, task=ChunkTask.FINETUNE) if claimed else None
    cancel(quiet, owner, job.id)
    if lease is not None:
        with quiet.tenant(owner) as session:
            record_stopped(session, lease)
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job.id, JobState.CANCELLED)
    with quiet.tenant(owner) as session:
        version = session.get_one(ModelVersion, job.model_version_id)
        assert version.state == VersionState.FAILED


_SAMPLES = [(label, split) for split in ("train", "train", "test") for label in ("cat", "dog")]


def test_cancelled_export_ends_and_leaves_its_source_alone(quiet: Database, owner: str) -> None:
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 0, kind=JobKind.EXPORT)
    cancel(quiet, owner, job_id)
    sweep_once(quiet, max_kills=5)
    assert_closed(quiet, owner, job_id, JobState.CANCELLED)


def test_cancel_twice_is_one_cancel_and_after_the_end_a_conflict(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 1)
    cancel(quiet, owner, job_id)
    cancel(quiet, owner, job_id)
    sweep_once(quiet, max_kills=5)
    with quiet.tenant(owner) as session:
        assert cancel_job(session, owner, job_id).state == JobState.CANCELLED
    job_id, (chunk,) = make_job(quiet, owner, 1)
    finish(quiet, owner, chunk)
    with (
        pytest.raises(ConflictError, match="already ended as succeeded"),
        quiet.tenant(owner) as session,
    ):
        cancel_job(session, owner, job_id)


def test_cancel_tells_the_new_state_to_a_caller_who_read_the_job_before(
    quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, 1)
    with quiet.tenant(owner) as session:
        before = get_job(session, owner, job_id)
        assert before.state == JobState.QUEUED
        assert cancel_job(session, owner, job_id).state == JobState.CANCELLING


def test_tenant_cannot_cancel_the_job_of_another(quiet: Database, owner: str) -> None:
    job_id, _ = make_job(quiet, owner, 1)
    other = make_tenant(quiet)
    with pytest.raises(NotFoundError), quiet.tenant(other) as session:
        cancel_job(session, other, job_id)
    assert look_at_job(quiet, owner, job_id).state == JobState.QUEUED


def test_cancel_claim_record_and_sweep_at_the_same_moment_leave_counts_that_sum(
    quiet: Database, owner: str
) -> None:
    for _ in range(6):
        job_id, chunks = make_job(quiet, owner, 2, 3, 4, 5)
        held = claim(quiet, owner, chunks[0])
        late: list[Lease | None] = []

        def record(held: Lease = held) -> None:
            record_all(quiet, held)

        def take(chunk: str, into: list[Lease | None]) -> None:
            into.append(try_claim(quiet, owner, chunk))

        def sweep() -> None:
            sweep_once(quiet, max_kills=5)

        answers = at_once(
            partial(cancel, quiet, owner, job_id),
            record,
            partial(take, chunks[1], late),
            sweep,
            sweep,
        )
        assert answers == [None] * 5
        if late[0] is not None:
            with quiet.tenant(owner) as session:
                record_stopped(session, late[0])
        sweep_once(quiet, max_kills=5)
        job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
        assert (job.total, job.succeeded, job.cancelled) == (14, 2, 12)
