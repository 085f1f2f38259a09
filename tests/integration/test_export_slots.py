"""Exports hold their slot to the end: others find one all the same, suspects too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from celery import Celery
from sqlalchemy import func, select

from app.db.session import Database
from app.dispatch.relay import relay_once
from app.exports import read
from app.jobs.states import ChunkState, ChunkTask, JobKind, JobState
from app.jobs.submit import submit_export
from app.jobs.tables import Chunk, Job
from app.queues.celery import make_celery
from app.queues.names import SLOTS_OF_QUEUE, Queue
from app.settings import Settings
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.jobs import (
    add_chunk,
    add_planned_job,
    add_worker,
    chunk_ids,
    claim,
    finish,
    look_at_chunk,
    look_at_job,
    lose_worker,
    try_claim,
)
from tests.plans import BUCKET
from tests.service import wait_until
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks import export
from worker.tasks.door import let_go, open_door

PATIENCE = 20


@pytest.fixture
def celery(settings: Settings, valkey: LocalValkey) -> Iterator[Celery]:
    """Rings into a Valkey that nobody listens to."""
    with redis.Redis.from_url(valkey.client_url) as lists:
        lists.flushdb()
        app = make_celery(settings)
        yield app
        app.close()
        lists.flushdb()


@pytest.fixture
def process(
    settings: Settings, quiet: Database, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerProcess]:
    """The inside of an io worker that gives way at once."""
    objects.ensure_bucket(BUCKET)
    # A page and a look for each row.
    monkeypatch.setattr(read, "_PAGE_ROWS_MAX", 1)
    fast = settings.model_copy(
        update={"heartbeat_seconds": 0.05, "io_turn_seconds": 0.01, "bucket": BUCKET}
    )
    process = WorkerProcess(fast, Queue.IO)
    process.db.close()
    process.db, process.store = quiet, objects
    process.heartbeat.start()
    yield process
    process.stopping.set()
    process.heartbeat.close()


def add_export(db: Database, tenant_id: str, items: int = 1) -> tuple[str, str]:
    """An export of a job with so many results, and its chunk."""
    with db.tenant(tenant_id) as session:
        source = add_planned_job(session, tenant_id, items)
    (chunk_id,) = chunk_ids(db, source)
    finish(db, tenant_id, chunk_id)
    with db.tenant(tenant_id) as session:
        job_id = submit_export(session, tenant_id, job_id=source, format="jsonl").id
    (chunk_id,) = chunk_ids(db, job_id)
    return job_id, chunk_id


def add_ingest(db: Database, tenant_id: str) -> str:
    """A chunk that gives its slot back where others wait."""
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, kind=JobKind.INGEST)
        return add_chunk(session, session.get_one(Job, job_id), ChunkTask.INGEST).id


def rung(db: Database, task: ChunkTask) -> int:
    """Chunks of the task that are in work or have a bell on its way."""
    with db.system() as session:
        busy = (Chunk.state == ChunkState.RUNNING) | (
            (Chunk.state == ChunkState.PENDING) & Chunk.last_rung_at.is_not(None)
        )
        count = select(func.count()).where(Chunk.task == task, busy)
        return session.scalar(count) or 0


@pytest.mark.parametrize("workers", [1, 2])
def test_exports_leave_a_slot_of_each_worker_to_plans_and_ingests(
    quiet: Database, celery: Celery, workers: int
) -> None:
    slots = SLOTS_OF_QUEUE[Queue.IO]
    with quiet.system() as session:
        for _ in range(workers):
            add_worker(session, Queue.IO, slots)
    exports = [add_export(quiet, make_tenant(quiet))[1] for _ in range(2 * workers * slots)]
    for _ in range(3):
        relay_once(quiet, celery, ring_again_seconds=5, alive_seconds=600)
    most = workers * (slots - 1)
    assert rung(quiet, ChunkTask.EXPORT) == most
    # Of those in work and of those on their way alike.
    begun = [
        each
        for each in exports
        if look_at_chunk(quiet, each).last_rung_at is not None
        and try_claim(quiet, look_at_chunk(quiet, each).tenant_id, each, task=ChunkTask.EXPORT)
    ]
    assert len(begun) == most
    late = add_ingest(quiet, make_tenant(quiet))
    relay_once(quiet, celery, ring_again_seconds=5, alive_seconds=600)
    assert rung(quiet, ChunkTask.EXPORT) == most
    assert look_at_chunk(quiet, late).last_rung_at is not None


def test_worker_with_one_slot_exports_too(quiet: Database, celery: Celery, owner: str) -> None:
    with quiet.system() as session:
        add_worker(session, Queue.IO, slots=1)
    add_export(quiet, owner)
    add_export(quiet, owner)
    relay_once(quiet, celery, ring_again_seconds=5, alive_seconds=600)
    assert rung(quiet, ChunkTask.EXPORT) == 1


def test_export_gives_way_to_a_suspect_and_is_written_afterwards(
    process: WorkerProcess, quiet: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, chunk_id = add_export(quiet, owner, items=5)
    suspect = add_ingest(quiet, owner)
    claim(quiet, owner, suspect, task=ChunkTask.INGEST)
    lose_worker(quiet, suspect)
    begun, suspect_ran = threading.Event(), threading.Event()
    move = HeldLease.move

    def move_when_wanted(held: HeldLease) -> None:
        """At the first page: the suspect comes while the export is at work."""
        if held.lease.chunk_id == chunk_id and not begun.is_set():
            begun.set()
            wait_until(lambda: process.gate.wanted_seconds > 0.01, "the suspect waits")
        move(held)

    monkeypatch.setattr(HeldLease, "move", move_when_wanted)

    def suspected(process: WorkerProcess, held: HeldLease) -> None:
        row = look_at_chunk(quiet, chunk_id)
        assert (row.state, row.faults, row.kills) == (ChunkState.PENDING, 0, 0)
        suspect_ran.set()
        let_go(process, held)

    def ring(chunk: str, task: ChunkTask) -> None:
        work = suspected if task is ChunkTask.INGEST else export.export_chunk
        open_door(process, task, work, chunk_id=chunk, tenant_id=owner)

    with ThreadPoolExecutor(2) as slots:
        first = slots.submit(ring, chunk_id, ChunkTask.EXPORT)
        assert begun.wait(PATIENCE)
        slots.submit(ring, suspect, ChunkTask.INGEST).result(PATIENCE)
        first.result(PATIENCE)
    assert suspect_ran.is_set()
    ring(chunk_id, ChunkTask.EXPORT)
    job = look_at_job(quiet, owner, job_id)
    assert (job.state, job.result) == (
        JobState.SUCCEEDED,
        {"rows": 5, "counts": {"succeeded": 5}},
    )


def test_suspect_export_lets_others_in_only_once_it_is_further_than_before(
    process: WorkerProcess, quiet: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "REACH_ROWS", 2)
    job_id, chunk_id = add_export(quiet, owner, items=7)
    shared: list[tuple[int, int]] = []

    class KilledError(BaseException):
        """What stands here for a SIGKILL: nothing of the worker's own runs any more."""

    def write(die_after: int) -> None:
        lease = claim(quiet, owner, chunk_id, task=ChunkTask.EXPORT)

        def share() -> None:
            shared.append((lease.attempt, look_at_chunk(quiet, chunk_id).kills))

        with process.heartbeat.hold(lease, share) as held:

            def report(rows: int) -> None:
                if rows > die_after:
                    raise KilledError

            monkeypatch.setattr(held, "report", report)
            export.export_chunk(process, held)

    for die_after in (5, 5):
        with pytest.raises(KilledError):
            write(die_after)
        lose_worker(quiet, chunk_id)
    # The second came exactly as far: it stays a suspect, and has let nobody in.
    assert [attempt for attempt, _ in shared] == [1, 1]
    assert look_at_chunk(quiet, chunk_id).kills == 2
    write(die_after=100)
    assert shared[2:] == [(3, 0)]
    assert look_at_job(quiet, owner, job_id).state == JobState.SUCCEEDED
