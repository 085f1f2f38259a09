"""How a worker answers bells, in this process: once, none that is forged, suspects alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from app.db.session import Database
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.queues.names import Queue
from app.settings import Settings
from tests.doors import PATIENCE, do_it, never, ring
from tests.factories import make_tenant
from tests.jobs import assert_closed, claim, look_at_chunk, lose_worker, make_job
from tests.service import wait_until
from worker.heartbeat import HeldLease
from worker.main import make_worker
from worker.process import WorkerProcess


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
