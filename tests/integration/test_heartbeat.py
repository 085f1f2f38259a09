"""What work learns of its lease and its job while it goes on, and how it lets go."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, ExitStack

import pytest
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.sweep import sweep_once
from app.errors import ConflictError, FencedError, UnavailableError
from app.jobs.cancel import cancel_job
from app.jobs.pause import pause_job
from app.jobs.record import record_chunk, record_prefix
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import WorkerRow
from app.queues.names import Queue
from app.settings import Settings
from tests.doors import PATIENCE, do_it, never, ring, worker_inside
from tests.factories import make_tenant
from tests.jobs import (
    assert_closed,
    claim,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_job,
    rows_of,
)
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import let_go


def test_work_learns_that_its_lease_is_lost_and_nothing_of_it_is_kept(
    process: WorkerProcess, quiet: Database, owner: str, settings: Settings
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    successor = threading.Event()
    other = worker_inside(settings, Queue.IO, quiet)

    def slow(process: WorkerProcess, held: HeldLease) -> None:
        lose_worker(quiet, chunk)
        ring(other, owner, chunk, second)
        assert held.lost.wait(PATIENCE)
        assert held.should_stop()
        with pytest.raises(FencedError):
            do_it(process, held)
        successor.set()
        let_go(process, held)

    def second(process: WorkerProcess, held: HeldLease) -> None:
        assert held.lease.attempt == 2
        do_it(process, held)

    ring(process, owner, chunk, slow)
    assert successor.is_set()
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_thread_that_lost_its_lease_does_not_end_the_beating_for_the_next_attempt(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    old = claim(quiet, owner, chunk)
    with process.heartbeat.hold(old) as first:
        lose_worker(quiet, chunk)
        new = claim(quiet, owner, chunk)
        with process.heartbeat.hold(new) as second:
            assert first.lost.wait(PATIENCE)
    with process.heartbeat.hold(new) as second:
        with process.heartbeat.hold(old):
            pass
        with quiet.tenant(owner) as session:
            cancel_job(session, owner, new.job_id)
        assert second.cancelled.wait(PATIENCE)
        assert not second.lost.is_set()


def test_lease_that_cannot_be_looked_at_does_not_end_the_beating_for_the_others(
    process: WorkerProcess,
    quiet: Database,
    owner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, stuck = make_job(quiet, owner, 1, 1, 1, 1)
    other = make_tenant(quiet)
    job_id, (chunk,) = make_job(quiet, other, 3)
    with ExitStack() as leases:
        for one in stuck:
            leases.enter_context(process.heartbeat.hold(claim(quiet, owner, one)))
        held = leases.enter_context(process.heartbeat.hold(claim(quiet, other, chunk)))
        through = quiet.tenant

        def tenant(tenant_id: str) -> AbstractContextManager[Session]:
            if tenant_id == owner:
                raise UnavailableError("somebody locks these rows")
            return through(tenant_id)

        monkeypatch.setattr(quiet, "tenant", tenant)
        with quiet.tenant(other) as session:
            cancel_job(session, other, job_id)
        assert held.cancelled.wait(PATIENCE)


def test_stopping_worker_keeps_its_prefix_and_gives_the_rest_back_without_a_kill(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 3, 4)

    def halfway(process: WorkerProcess, held: HeldLease) -> None:
        process.stopping.set()
        assert held.should_stop()
        with process.db.tenant(owner) as session:
            record_prefix(session, held.lease, rows_of(held.lease, 2))

    ring(process, owner, chunks[0], halfway)
    process.stopping.clear()

    def at_once(process: WorkerProcess, held: HeldLease) -> None:
        process.stopping.set()
        let_go(process, held)

    ring(process, owner, chunks[1], at_once)
    rows = [look_at_chunk(quiet, chunk) for chunk in chunks]
    assert [(row.state, row.lo, row.hi, row.kills) for row in rows] == [
        (ChunkState.PENDING, 2, 3, 0),
        (ChunkState.PENDING, 3, 7, 0),
    ]
    assert look_at_job(quiet, owner, job_id).succeeded == 2


def test_cancel_reaches_the_work_and_letting_go_closes_the_job(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)

    def work(process: WorkerProcess, held: HeldLease) -> None:
        with quiet.tenant(owner) as session:
            cancel_job(session, owner, job_id)
        assert held.cancelled.wait(PATIENCE)
        let_go(process, held)

    ring(process, owner, chunk, work)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert job.cancelled == 3


def test_pause_reaches_the_work_and_letting_go_gives_the_chunk_back_without_a_kill(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)

    def work(process: WorkerProcess, held: HeldLease) -> None:
        with quiet.tenant(owner) as session:
            pause_job(session, owner, job_id)
        assert held.paused.wait(PATIENCE)
        assert held.should_stop()
        let_go(process, held)

    ring(process, owner, chunk, work)
    ring(process, owner, chunk, never)
    row = look_at_chunk(quiet, chunk)
    assert (row.state, row.kills, row.lo, row.hi) == (ChunkState.PENDING, 0, 0, 3)
    assert look_at_job(quiet, owner, job_id).state == JobState.PAUSED


def test_work_that_finishes_in_a_cancelled_job_and_cannot_register_still_ends_it(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 0)

    def work(process: WorkerProcess, held: HeldLease) -> None:
        with quiet.tenant(owner) as session:
            cancel_job(session, owner, job_id)
        with process.db.tenant(owner) as session:
            record_chunk(session, held.lease, result={"model_version": "mdv_1"})
            # What completing a version says that the cancel has just marked as failed.
            raise ConflictError("the version is failed", code="model_not_pending")

    ring(process, owner, chunk, work)
    sweep_once(quiet, max_kills=3)
    job = assert_closed(quiet, owner, job_id, JobState.CANCELLED)
    assert (job.result, job.error) == (None, None)


def test_worker_whose_name_another_took_is_told_to_end(
    process: WorkerProcess, settings: Settings, quiet: Database
) -> None:
    twin = worker_inside(settings, Queue.IO, quiet)
    twin.name = process.name
    twin.heartbeat.start()
    try:
        assert process.stopping.wait(PATIENCE)
        assert not twin.stopping.is_set()
    finally:
        twin.heartbeat.close()
    with quiet.system() as session:
        assert session.get_one(WorkerRow, process.id).gone_at is not None
