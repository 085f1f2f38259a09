"""Leases on real PostgreSQL: who gets a chunk, who keeps it, who has lost it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch.leases import free_ended_leases
from app.jobs.claim import (
    Lease,
    claim_chunk,
    extend_lease,
    faults_so_far,
    look_at_lease,
    release_chunk,
    suspect_kills,
)
from app.jobs.items import unpack_items
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk, Job
from tests.factories import add_job, make_tenant
from tests.jobs import (
    add_chunk,
    add_planned_job,
    at_once,
    chunk_ids,
    claim,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    try_claim,
)


@pytest.fixture
def job_id(database: Database, tenant_id: str) -> str:
    """A queued job of two chunks, three items and two."""
    with database.tenant(tenant_id) as session:
        return add_planned_job(session, tenant_id, 3, 2)


@pytest.fixture
def chunk_id(database: Database, job_id: str) -> str:
    """The first chunk."""
    return chunk_ids(database, job_id)[0]


def test_claim_gives_the_items_and_starts_the_job(
    database: Database, tenant_id: str, job_id: str, chunk_id: str
) -> None:
    lease = claim(database, tenant_id, chunk_id, worker_id="wrk_one")
    assert (lease.job_id, lease.attempt, lease.lo, lease.hi) == (job_id, 1, 0, 3)
    assert [item.key for item in unpack_items(lease.items or {})] == ["0.png", "1.png", "2.png"]
    chunk = look_at_chunk(database, chunk_id)
    assert (chunk.state, chunk.worker_id, chunk.kills) == (ChunkState.RUNNING, "wrk_one", 0)
    job = look_at_job(database, tenant_id, job_id)
    assert job.state == JobState.RUNNING
    assert job.running_at is not None


def test_of_workers_that_claim_at_once_one_gets_the_chunk(
    database: Database, tenant_id: str, chunk_id: str
) -> None:
    answers = at_once(*[lambda: try_claim(database, tenant_id, chunk_id)] * 5)
    assert sum(isinstance(answer, Lease) for answer in answers) == 1
    assert answers.count(None) == 4
    assert look_at_chunk(database, chunk_id).attempt == 1


def test_lease_that_has_ended_is_claimed_only_after_a_sweep_and_its_holder_is_fenced(
    database: Database, tenant_id: str, chunk_id: str
) -> None:
    first = claim(database, tenant_id, chunk_id)
    let_lease_end(database, chunk_id)
    assert try_claim(database, tenant_id, chunk_id) is None
    free_ended_leases(database)
    answers = at_once(*[lambda: try_claim(database, tenant_id, chunk_id)] * 5)
    (second,) = [answer for answer in answers if isinstance(answer, Lease)]
    assert second.attempt == 2
    assert look_at_chunk(database, chunk_id).kills == 1
    with database.tenant(tenant_id) as session:
        assert look_at_lease(session, first) is None
        assert extend_lease(session, first, lease_seconds=30) is None
        assert faults_so_far(session, first) is None
        assert not release_chunk(session, first)
        assert look_at_lease(session, second) == JobState.RUNNING


@pytest.mark.parametrize(("kills", "allowed"), [(0, 0), (1, 1), (2, 0), (7, 0)])
def test_suspect_is_claimed_by_name_only_and_not_before_it_is_narrowed(
    database: Database, tenant_id: str, chunk_id: str, kills: int, allowed: int
) -> None:
    with database.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk_id).values(kills=kills))
    with database.tenant(tenant_id) as session:
        assert suspect_kills(session, tenant_id, chunk_id) == allowed
        lease = claim_chunk(
            session,
            tenant_id,
            chunk_id,
            task=ChunkTask.PREDICT,
            worker_id="wrk_one",
            lease_seconds=30,
        )
    assert (lease is not None) == (kills == 0)
    if kills:
        assert (try_claim(database, tenant_id, chunk_id) is not None) == (allowed == kills)


def test_forged_and_late_bells_claim_nothing_and_change_nothing(
    database: Database, tenant_id: str, job_id: str, chunk_id: str
) -> None:
    other = make_tenant(database)
    assert try_claim(database, other, chunk_id) is None
    assert try_claim(database, tenant_id, chunk_id, task=ChunkTask.IMPORT) is None
    assert try_claim(database, tenant_id, "chk_no_such") is None
    assert try_claim(database, "", chunk_id) is None
    chunk = look_at_chunk(database, chunk_id)
    assert (chunk.state, chunk.attempt) == (ChunkState.PENDING, 0)
    assert look_at_job(database, tenant_id, job_id).state == JobState.QUEUED


def test_chunk_is_not_claimed_before_it_is_due(
    database: Database, tenant_id: str, chunk_id: str
) -> None:
    lease = claim(database, tenant_id, chunk_id)
    with database.tenant(tenant_id) as session:
        assert release_chunk(session, lease, delay_seconds=60, failed=True)
    assert try_claim(database, tenant_id, chunk_id) is None
    with database.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk_id).values(due_at=func.now()))
    again = claim(database, tenant_id, chunk_id)
    assert again.attempt == 2
    with database.tenant(tenant_id) as session:
        assert faults_so_far(session, again) == 1
    assert look_at_chunk(database, chunk_id).kills == 0


def test_chunk_given_back_without_a_fault_counts_no_kill_and_is_due_at_once(
    database: Database, tenant_id: str, chunk_id: str
) -> None:
    lease = claim(database, tenant_id, chunk_id)
    with database.tenant(tenant_id) as session:
        assert release_chunk(session, lease)
    chunk = look_at_chunk(database, chunk_id)
    assert (chunk.kills, chunk.worker_id, chunk.last_rung_at) == (0, None, None)
    assert claim(database, tenant_id, chunk_id).attempt == 2


def test_heartbeat_moves_the_end_of_the_lease_and_tells_of_a_cancel(
    database: Database, tenant_id: str, job_id: str, chunk_id: str
) -> None:
    lease = claim(database, tenant_id, chunk_id)
    before = look_at_chunk(database, chunk_id).lease_until
    with database.tenant(tenant_id) as session:
        assert extend_lease(session, lease, lease_seconds=90, progress=2) == JobState.RUNNING
    chunk = look_at_chunk(database, chunk_id)
    assert chunk.lease_until is not None
    assert before is not None
    assert chunk.lease_until - before > timedelta(seconds=50)
    assert chunk.progress == 2
    with database.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state=JobState.CANCELLING))
    with database.tenant(tenant_id) as session:
        assert look_at_lease(session, lease) == JobState.CANCELLING


@pytest.mark.parametrize(
    ("state", "task", "claimed"),
    [
        (JobState.VALIDATING, ChunkTask.PLAN, True),
        (JobState.VALIDATING, ChunkTask.PREDICT, False),
        (JobState.QUEUED, ChunkTask.PREDICT, True),
        (JobState.RUNNING, ChunkTask.PREDICT, True),
        (JobState.RUNNING, ChunkTask.PLAN, False),
        (JobState.CANCELLING, ChunkTask.PREDICT, False),
        (JobState.CANCELLING, ChunkTask.PLAN, False),
    ],
)
def test_state_of_the_job_decides_which_chunks_run(
    database: Database, tenant_id: str, state: JobState, task: ChunkTask, claimed: bool
) -> None:
    with database.tenant(tenant_id) as session:
        chunk = add_chunk(session, add_job(session, tenant_id, state=state), task)
    assert (try_claim(database, tenant_id, chunk.id, task=task) is not None) == claimed
