"""What becomes of a chunk whose work fails, crashes, or loses the database."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.sweep import Swept, sweep_once
from app.errors import InvalidInputError, StorageAwayError, StorageError, UnavailableError
from app.jobs.states import ChunkState, ItemState, JobState
from app.jobs.tables import Chunk, Item
from tests.doors import do_it, failing, never, ring
from tests.jobs import assert_closed, let_lease_end, look_at_chunk, make_due, make_job
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import Work


def test_fault_that_may_pass_waits_longer_each_time_and_at_last_fails_the_job_by_its_name(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    waits = []
    for faults in (1, 2):
        ring(process, owner, chunk, failing(StorageError("the store is down")))
        row = look_at_chunk(quiet, chunk)
        assert (row.state, row.faults, row.kills) == (ChunkState.PENDING, faults, 0)
        waits.append((row.due_at - row.running_at).total_seconds() if row.running_at else 0)
        ring(process, owner, chunk, never)
        make_due(quiet, chunk)
    assert waits == [pytest.approx(2, abs=1), pytest.approx(6, abs=1)]
    ring(process, owner, chunk, failing(StorageError("the store is down")))
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert job.error == {"code": "fetch_failed", "detail": "the store is down"}


def test_store_that_is_away_is_waited_for_as_long_as_the_settings_say(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    # Five minutes at a try a minute, beside the three that every fault has.
    process.settings = process.settings.model_copy(update={"outage_seconds": 300})
    job_id, (chunk,) = make_job(quiet, owner, 3)
    away = StorageAwayError("the store does not answer")
    for faults in range(1, 8):
        ring(process, owner, chunk, failing(away))
        row = look_at_chunk(quiet, chunk)
        assert (row.state, row.faults) == (ChunkState.PENDING, faults)
        make_due(quiet, chunk)
    ring(process, owner, chunk, failing(away))
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert job.error == {"code": "fetch_failed", "detail": "the store does not answer"}


def test_crash_that_nobody_knows_is_tried_again_and_tells_no_inside(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 0)
    for _ in range(3):
        ring(process, owner, chunk, failing(RuntimeError("password=hunter2")))
        make_due(quiet, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert job.error is not None
    assert job.error["code"] == "internal_error"
    assert "hunter2" not in str(job.error)


def crashing_at(bad: set[int]) -> Work:
    """Work that raises what nobody knows where the chunk holds one of these items."""

    def work(process: WorkerProcess, held: HeldLease) -> None:
        if bad & set(range(held.lease.lo, held.lease.hi)):
            raise RuntimeError("password=hunter2")
        do_it(process, held)

    return work


def ring_all(process: WorkerProcess, db: Database, tenant_id: str, job_id: str, work: Work) -> int:
    """Ring for every waiting chunk of the job until none is left; how many bells."""
    bells = 0
    while True:
        with db.system() as session:
            waiting = session.scalars(
                select(Chunk.id).where(Chunk.job_id == job_id, Chunk.state == ChunkState.PENDING)
            ).all()
        if not waiting:
            return bells
        for chunk in waiting:
            make_due(db, chunk)
            ring(process, tenant_id, chunk, work)
            bells += 1


def test_item_that_crashes_its_chunk_is_found_in_halves_and_the_others_succeed(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, 16, 3)
    ring_all(process, quiet, owner, job_id, crashing_at({5}))
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed) == (18, 1)
    with quiet.tenant(owner) as session:
        (item,) = session.scalars(
            select(Item).where(Item.job_id == job_id, Item.state == ItemState.FAILED)
        )
    assert (item.ordinal, item.custom_id, item.source) == (5, "item 5", "s3://photos/5.png")
    assert (item.error or {})["code"] == "internal_error"
    assert "hunter2" not in str(item.error)


def test_crash_that_meets_every_item_fails_the_job_instead_of_each(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, *[1] * 20)
    bells = ring_all(process, quiet, owner, job_id, crashing_at(set(range(20))))
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.error or {})["code"] == "internal_error"
    assert job.failed < 20
    assert bells < 60


def test_fault_that_stays_fails_the_job_at_once(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    ring(process, owner, chunk, failing(InvalidInputError("bad weights", code="bad_weights")))
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.error or {})["code"] == "bad_weights"


def test_database_that_goes_in_the_middle_leaves_the_lease_to_end_by_itself(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")

    def work(process: WorkerProcess, held: HeldLease) -> None:
        process.db = nowhere
        do_it(process, held)

    ring(process, owner, chunk, work)
    # And a bell meanwhile is not answered, but harms nobody.
    ring(process, owner, chunk, never)
    nowhere.close()
    process.db = quiet
    assert look_at_chunk(quiet, chunk).state == ChunkState.RUNNING
    let_lease_end(quiet, chunk)
    assert sweep_once(quiet, max_kills=3) == Swept(freed=1)
    ring(process, owner, chunk, do_it)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_answer_of_a_commit_that_got_lost_does_not_undo_what_it_recorded(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)

    def work(process: WorkerProcess, held: HeldLease) -> None:
        do_it(process, held)
        raise UnavailableError("the connection was lost at COMMIT")

    ring(process, owner, chunk, work)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_record_that_fails_while_the_database_restarts_is_no_kill(
    process: WorkerProcess,
    quiet: Database,
    owner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 1)
    through = quiet.tenant
    this_thread = threading.get_ident()
    refused: list[str] = []

    def tenant(tenant_id: str) -> AbstractContextManager[Session]:
        if threading.get_ident() == this_thread and len(refused) < 2:
            refused.append(tenant_id)
            raise UnavailableError("the database restarts")
        return through(tenant_id)

    def work(process: WorkerProcess, held: HeldLease) -> None:
        monkeypatch.setattr(quiet, "tenant", tenant)
        do_it(process, held)

    for _ in range(2):
        refused.clear()
        ring(process, owner, chunk, work)
        monkeypatch.undo()
        row = look_at_chunk(quiet, chunk)
        assert (row.state, row.kills, row.worker_id) == (ChunkState.PENDING, 0, None)
        make_due(quiet, chunk)
    ring(process, owner, chunk, do_it)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)
