"""The sweeper on real PostgreSQL: what nobody is left to put right."""

from __future__ import annotations

import pytest
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch import sweep
from app.dispatch.leases import LeaseEnds
from app.dispatch.sweep import Swept, sweep_once
from app.errors import FencedError, UnavailableError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease, extend_lease
from app.jobs.progress import get_job
from app.jobs.record import record_chunk, record_failure
from app.jobs.states import ChunkState, ChunkTask, JobKind, JobState
from app.jobs.tables import Chunk, Job, WorkerRow
from tests.factories import add_job
from tests.jobs import (
    add_chunk,
    add_worker,
    assert_closed,
    at_once,
    claim,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    make_job,
    record_all,
)
from tests.service import wait_until


def test_sweep_leaves_what_is_well_alone(quiet: Database, owner: str) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 2)
    with quiet.system() as session:
        worker_id = add_worker(session)
    held = claim(quiet, owner, chunks[0], worker_id=worker_id)
    assert not sweep_once(quiet, max_kills=1)
    record_all(quiet, held)
    assert not sweep_once(quiet, max_kills=1)
    assert look_at_job(quiet, owner, job_id).state == JobState.RUNNING


def test_expired_lease_returns_the_chunk_to_pending_and_counts_a_kill(
    quiet: Database, owner: str
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    assert sweep_once(quiet, max_kills=5) == Swept(freed=1)
    row = look_at_chunk(quiet, chunk)
    assert (row.state, row.kills, row.worker_id) == (ChunkState.PENDING, 1, None)
    assert (row.lease_until, row.last_rung_at) == (None, None)
    assert claim(quiet, owner, chunk).attempt == 2


def test_chunk_of_a_worker_that_is_gone_is_freed_before_its_lease_ends(
    quiet: Database, owner: str
) -> None:
    _, chunks = make_job(quiet, owner, 3, 3)
    with quiet.system() as session:
        gone, here = add_worker(session), add_worker(session)
    claim(quiet, owner, chunks[0], worker_id=gone)
    claim(quiet, owner, chunks[1], worker_id=here)
    with quiet.system() as session:
        session.execute(update(WorkerRow).where(WorkerRow.id == gone).values(gone_at=func.now()))
    assert sweep_once(quiet, max_kills=5) == Swept(freed=1)
    assert look_at_chunk(quiet, chunks[0]).state == ChunkState.PENDING
    assert look_at_chunk(quiet, chunks[1]).state == ChunkState.RUNNING


def test_chunk_without_items_that_keeps_killing_its_workers_fails_the_job(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, JobKind.FINETUNE)
        chunk = add_chunk(session, job, ChunkTask.FINETUNE)
    for attempt in (1, 2, 3):
        held = claim(quiet, owner, chunk.id, task=ChunkTask.FINETUNE)
        assert held.attempt == attempt
        let_lease_end(quiet, chunk.id)
        assert sweep_once(quiet, max_kills=3) == Swept(freed=1, killed=attempt // 3)
    ended = assert_closed(quiet, owner, job.id, JobState.FAILED)
    assert (ended.error or {})["code"] == "worker_killed"
    with pytest.raises(FencedError), quiet.tenant(owner) as session:
        record_chunk(session, held, result={})


def test_sweepers_and_a_failing_worker_at_the_same_moment_fail_the_job_once(
    quiet: Database, owner: str
) -> None:
    for _ in range(4):
        job_id, chunks = make_job(quiet, owner, *[1] * 40)
        held = claim(quiet, owner, chunks[-1])
        with quiet.tenant(owner) as session:
            ingest = add_chunk(session, get_job(session, owner, job_id), ChunkTask.INGEST)
            ingest.kills = 5

        def fail(held: Lease = held) -> None:
            with quiet.tenant(owner) as session:
                record_failure(session, held, {"code": "x", "detail": "y"})

        answers = at_once(
            lambda: sweep_once(quiet, max_kills=5),
            fail,
            lambda: sweep_once(quiet, max_kills=5),
        )
        assert all(
            answer is None or isinstance(answer, (Swept, FencedError)) for answer in answers
        ), answers
        job = assert_closed(quiet, owner, job_id, JobState.FAILED)
        assert job.cancelled == 40


def test_sweepers_at_the_same_moment_free_each_chunk_once(quiet: Database, owner: str) -> None:
    _, chunks = make_job(quiet, owner, *[1] * 30)
    for chunk in chunks:
        claim(quiet, owner, chunk)
        let_lease_end(quiet, chunk)
    answers = at_once(*[lambda: sweep_once(quiet, max_kills=5)] * 3)
    assert sum(answer.freed for answer in answers if isinstance(answer, Swept)) == 30
    assert {look_at_chunk(quiet, chunk).kills for chunk in chunks} == {1}


def test_job_that_nothing_would_close_any_more_is_closed_by_what_its_items_say(
    quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 2)
    for chunk in chunks:
        lease = claim(quiet, owner, chunk)
        with quiet.system() as session:
            # A count that is off: the last record does not see that it is the last.
            session.execute(update(Job).where(Job.id == job_id).values(failed=0, succeeded=0))
        record_all(quiet, lease, 0)
    assert look_at_job(quiet, owner, job_id).state == JobState.RUNNING
    assert sweep_once(quiet, max_kills=5) == Swept(repaired=1)
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed) == (4, 1)


def test_job_whose_items_do_not_add_up_fails_openly(quiet: Database, owner: str) -> None:
    with quiet.tenant(owner) as session:
        job = add_job(session, owner, state=JobState.VALIDATING)
        plan = add_chunk(session, job, ChunkTask.PLAN)
    with quiet.system() as session:
        session.execute(update(Chunk).where(Chunk.id == plan.id).values(state=ChunkState.CANCELLED))
    assert sweep_once(quiet, max_kills=5) == Swept(repaired=1)
    ended = assert_closed(quiet, owner, job.id, JobState.FAILED)
    assert ended.error is not None
    assert ended.error["code"] == "counts_disagree"


def test_leases_that_nobody_could_keep_while_the_database_was_away_are_spared_for_a_while(
    quiet: Database, owner: str
) -> None:
    _, chunks = make_job(quiet, owner, 1, 1, 1)
    with quiet.system() as session:
        gone, living = add_worker(session), add_worker(session)
    leases = [
        claim(quiet, owner, chunk, worker_id=worker_id)
        for chunk, worker_id in zip(chunks, (gone, living, living), strict=True)
    ]
    with quiet.system() as session:
        session.execute(update(WorkerRow).where(WorkerRow.id == gone).values(gone_at=func.now()))
    nowhere = Database("postgresql://nobody@127.0.0.1:1/x", "postgresql://nobody@127.0.0.1:1/x")
    ends = LeaseEnds(lease_seconds=3)
    with pytest.raises(UnavailableError):
        ends.free(nowhere)
    for chunk in chunks:
        let_lease_end(quiet, chunk)
    # Where the worker's next process has taken its place, nobody will renew anything.
    assert ends.free(quiet) == 1
    assert look_at_chunk(quiet, chunks[0]).kills == 1
    # The worker that lives renews one of its leases, and hangs in the other.
    with quiet.tenant(owner) as session:
        extend_lease(session, leases[1], lease_seconds=30)
    wait_until(lambda: ends.free(quiet), "the other one is freed")
    assert [(row.state, row.kills) for row in (look_at_chunk(quiet, each) for each in chunks)] == [
        (ChunkState.PENDING, 1),
        (ChunkState.RUNNING, 0),
        (ChunkState.PENDING, 1),
    ]


def test_rows_that_a_step_chokes_on_keep_no_other_from_its_end(quiet: Database, owner: str) -> None:
    _, (torn,) = make_job(quiet, owner, 1)
    well_id, (well,) = make_job(quiet, owner, 1)
    odd_id, _ = make_job(quiet, owner, 2)
    cancelled_id, _ = make_job(quiet, owner, 2)
    with quiet.system() as session:
        # Its counts cannot sum to this, so no write of them is taken.
        session.execute(update(Job).where(Job.id == odd_id).values(total=1, sealed_at=None))
        session.execute(update(Job).where(Job.id == odd_id).values(sealed_at=func.now()))
        session.execute(update(Chunk).where(Chunk.id == torn).values(items=None))
        session.execute(update(Chunk).where(Chunk.id.in_([torn, well])).values(kills=2))
    with quiet.tenant(owner) as session:
        for job_id in (odd_id, cancelled_id):
            cancel_job(session, owner, job_id)
    swept = sweep_once(quiet, max_kills=5)
    assert (swept.poisonous, swept.stopped) == (1, 1)
    assert look_at_job(quiet, owner, odd_id).state == JobState.CANCELLING
    assert_closed(quiet, owner, well_id, JobState.FAILED)
    assert_closed(quiet, owner, cancelled_id, JobState.CANCELLED)


def test_step_that_fails_leaves_the_others_their_turn(
    quiet: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, _ = make_job(quiet, owner, 2)
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, job_id)

    def choke(*_: object) -> int:
        raise ZeroDivisionError("a fault nobody thought of")

    for step in ("narrow_poisoned", "drop_old_turns", "fail_poisoned", "stop_overdue_jobs"):
        monkeypatch.setattr(sweep, step, choke)
    assert sweep_once(quiet, max_kills=5) == Swept(stopped=1)
    assert_closed(quiet, owner, job_id, JobState.CANCELLED)
