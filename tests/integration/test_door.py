"""What a worker does around its work, in this process: bells, faults, lost parts, shutdown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.sweep import Swept, sweep_once
from app.errors import (
    ConflictError,
    FencedError,
    InvalidInputError,
    StorageAwayError,
    StorageError,
    UnavailableError,
)
from app.jobs.cancel import cancel_job
from app.jobs.pause import pause_job
from app.jobs.record import record_chunk, record_prefix
from app.jobs.states import ChunkState, ChunkTask, ItemState, JobState
from app.jobs.tables import Chunk, Item, WorkerRow
from app.queues.names import Queue
from app.settings import Settings
from tests.factories import make_tenant
from tests.jobs import (
    add_planned_job,
    assert_closed,
    chunk_ids,
    claim,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    lose_worker,
    rows_of,
)
from tests.service import wait_until
from worker.heartbeat import HeldLease
from worker.main import make_worker
from worker.process import WorkerProcess
from worker.tasks.door import Work, let_go, open_door

PATIENCE = 10


@pytest.fixture
def owner(quiet: Database) -> str:
    """A tenant in the second database."""
    return make_tenant(quiet)


@pytest.fixture
def process(settings: Settings, quiet: Database) -> Iterator[WorkerProcess]:
    """A worker's inside that looks at its leases all the time."""
    fast = settings.model_copy(update={"heartbeat_seconds": 0.05, "max_kills": 3})
    process = WorkerProcess(fast, Queue.IO)
    process.db.close()
    process.db = quiet
    process.heartbeat.start()
    yield process
    process.stopping.set()
    process.db = quiet
    process.heartbeat.close()


def make_job(db: Database, tenant_id: str, *sizes: int) -> tuple[str, list[str]]:
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, *sizes)
    return job_id, chunk_ids(db, job_id)


def ring(
    process: WorkerProcess,
    tenant_id: str,
    chunk_id: str,
    work: Work,
    task: ChunkTask = ChunkTask.PREDICT,
) -> None:
    open_door(process, task, work, chunk_id=chunk_id, tenant_id=tenant_id)


def never(_process: WorkerProcess, _held: HeldLease) -> None:
    raise AssertionError("there is no work to do")


def failing(error: Exception) -> Work:
    def work(_process: WorkerProcess, _held: HeldLease) -> None:
        raise error

    return work


def do_it(process: WorkerProcess, held: HeldLease) -> None:
    with process.db.tenant(held.lease.tenant_id) as session:
        record_chunk(session, held.lease, rows_of(held.lease))


def test_bell_does_the_work_once_and_its_echo_nothing(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    ring(process, owner, chunk, do_it)
    ring(process, owner, chunk, never)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_forged_bells_open_no_door(process: WorkerProcess, quiet: Database, owner: str) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    ring(process, make_tenant(quiet), chunk, never)
    ring(process, owner, chunk, never, task=ChunkTask.IMPORT)
    ring(process, owner, "nonsense", never)
    ring(process, "", chunk, never)
    row = look_at_chunk(quiet, chunk)
    assert (row.state, row.attempt, row.kills) == (ChunkState.PENDING, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"chunk_id": "chk_1"},
        {"chunk_id": "chk_1", "tenant_id": "ten_1", "task": "predict"},
        {"chunk_id": {"$gt": ""}, "tenant_id": "ten_1"},
        {"chunk_id": "chk\x00", "tenant_id": "ten_1"},
        {"chunk_id": "' OR true --", "tenant_id": ["ten_1"]},
    ],
)
def test_message_that_is_no_bell_harms_nobody(settings: Settings, content: dict[str, Any]) -> None:
    celery: Celery
    celery, process = make_worker(settings, Queue.IO)
    try:
        result = celery.tasks["darkroom.plan"].apply(kwargs=content)
        # Refused, or nothing found; either way the worker takes the next one.
        assert result.failed() or result.result is None
    finally:
        celery.close()
        process.db.close()


def test_bell_that_comes_while_the_worker_stops_leaves_the_chunk_for_another(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    process.stopping.set()
    ring(process, owner, chunk, never)
    row = look_at_chunk(quiet, chunk)
    assert (row.state, row.attempt) == (ChunkState.PENDING, 0)


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


def make_due(db: Database, chunk_id: str) -> None:
    with db.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk_id).values(due_at=func.now()))


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


def test_work_learns_that_its_lease_is_lost_and_nothing_of_it_is_kept(
    process: WorkerProcess, quiet: Database, owner: str, settings: Settings
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    successor = threading.Event()
    other = WorkerProcess(settings, Queue.IO)
    other.db.close()
    other.db = quiet

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
    twin = WorkerProcess(settings, Queue.IO)
    twin.db.close()
    twin.db, twin.name = quiet, process.name
    twin.heartbeat.start()
    try:
        assert process.stopping.wait(PATIENCE)
        assert not twin.stopping.is_set()
    finally:
        twin.heartbeat.close()
    with quiet.system() as session:
        assert session.get_one(WorkerRow, process.id).gone_at is not None


def test_suspect_waits_for_the_neighbour_and_nothing_enters_beside_it(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (first, suspect, third) = make_job(quiet, owner, 1, 2, 3)
    claim(quiet, owner, suspect)
    lose_worker(quiet, suspect)
    events: list[str] = []
    neighbour_works, neighbour_may_end = threading.Event(), threading.Event()
    suspect_works, suspect_may_end = threading.Event(), threading.Event()

    def neighbour(process: WorkerProcess, held: HeldLease) -> None:
        neighbour_works.set()
        assert neighbour_may_end.wait(PATIENCE)
        events.append("neighbour ends")
        do_it(process, held)

    def suspected(process: WorkerProcess, held: HeldLease) -> None:
        events.append("suspect begins")
        suspect_works.set()
        assert suspect_may_end.wait(PATIENCE)
        events.append("suspect ends")
        do_it(process, held)

    def late(process: WorkerProcess, held: HeldLease) -> None:
        events.append("late begins")
        do_it(process, held)

    with ThreadPoolExecutor(3) as slots:
        slots.submit(ring, process, owner, first, neighbour)
        assert neighbour_works.wait(PATIENCE)
        waiting = slots.submit(ring, process, owner, suspect, suspected)
        wait_until(lambda: process.gate.wanted_seconds > 0, "the suspect waits")
        # A death now blames the neighbour alone: the suspect is not claimed.
        assert look_at_chunk(quiet, suspect).state == ChunkState.PENDING
        slots.submit(ring, process, owner, third, late)
        neighbour_may_end.set()
        assert suspect_works.wait(PATIENCE)
        assert look_at_chunk(quiet, third).state == ChunkState.PENDING
        suspect_may_end.set()
        waiting.result(PATIENCE)
    assert events == ["neighbour ends", "suspect begins", "suspect ends", "late begins"]
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)
    assert look_at_chunk(quiet, first).kills == look_at_chunk(quiet, third).kills == 0


def test_suspect_that_has_recorded_lets_others_in(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    job_id, (suspect, other) = make_job(quiet, owner, 2, 3)
    claim(quiet, owner, suspect)
    lose_worker(quiet, suspect)

    def suspected(process: WorkerProcess, held: HeldLease) -> None:
        held.on_recorded()
        with ThreadPoolExecutor(1) as slot:
            slot.submit(ring, process, owner, other, do_it).result(PATIENCE)
        do_it(process, held)

    ring(process, owner, suspect, suspected)
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)
