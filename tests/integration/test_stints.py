"""Giant inputs are read in stints: whoever waits for a place comes between two of them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from sqlalchemy import update

from app.db.session import Database
from app.dispatch.relay import relay_once
from app.jobs import plan
from app.jobs.claim import release_chunk
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.stint import Stint
from app.jobs.tables import Chunk
from app.queues.celery import make_celery
from app.queues.names import Queue
from app.settings import Settings
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.jobs import add_worker, chunk_ids, claim, look_at_chunk, look_at_job, try_claim
from tests.plans import BUCKET, all_items, put, submit

GIANT_ITEMS = 12_000


@pytest.fixture
def owner(quiet: Database, objects: ObjectStore) -> str:
    objects.ensure_bucket(BUCKET)
    return make_tenant(quiet)


def add_job(db: Database, store: ObjectStore, tenant_id: str, items: int) -> str:
    lines = [json.dumps({"key": f"{number}.png"}) for number in range(items)]
    manifest = put(store, f"{tenant_id}/{items}.jsonl", "\n".join(lines))
    return submit(db, tenant_id, {"manifest": manifest})


def ring_by_hand(db: Database, job_id: str) -> str:
    """Let the job's plan have a bell on its way that nobody has answered."""
    (chunk_id,) = chunk_ids(db, job_id)
    with db.system() as session:
        session.execute(
            update(Chunk).where(Chunk.id == chunk_id).values(last_rung_at=Chunk.created_at)
        )
    return chunk_id


def test_plan_lets_others_go_first_and_goes_on_where_it_was(
    quiet: Database, objects: ObjectStore, settings: Settings, owner: str
) -> None:
    hasty = settings.model_copy(update={"io_turn_seconds": 1e-9, "chunk_items": 100})
    giant = add_job(quiet, objects, owner, GIANT_ITEMS)
    plan_id = ring_by_hand(quiet, giant)
    lease = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    other = add_job(quiet, objects, make_tenant(quiet), 20)
    other_id = ring_by_hand(quiet, other)
    assert not plan.plan_job(quiet, objects, hasty, lease, should_stop=lambda: False)
    with quiet.tenant(owner) as session:
        assert release_chunk(session, lease)
    row = look_at_chunk(quiet, plan_id)
    assert row.state == ChunkState.PENDING
    assert row.cursor is not None
    assert 0 < row.cursor["planned"] < GIANT_ITEMS
    with quiet.system() as session:
        session.execute(update(Chunk).where(Chunk.id == other_id).values(last_rung_at=None))
    # Nobody waits any more: the rest in one go.
    lease = claim(quiet, owner, plan_id, task=ChunkTask.PLAN)
    assert plan.plan_job(quiet, objects, hasty, lease, should_stop=lambda: False)
    items = all_items(quiet, giant)
    assert [item.key for item in items] == [f"{number}.png" for number in range(GIANT_ITEMS)]


def test_stint_lasts_twice_as_long_as_it_took_to_begin(
    quiet: Database, objects: ObjectStore, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    giant = add_job(quiet, objects, owner, 1)
    lease = claim(quiet, owner, ring_by_hand(quiet, giant), task=ChunkTask.PLAN)
    ring_by_hand(quiet, add_job(quiet, objects, make_tenant(quiet), 2))
    clock = 100.0
    monkeypatch.setattr("app.jobs.stint.monotonic_seconds", lambda: clock)
    stint = Stint(quiet, lease, 5)
    clock += 10
    assert not stint.is_over()
    stint.begin_work()
    clock += 19
    stint.begin_work()
    assert not stint.is_over()
    clock += 1
    assert stint.is_over()


def test_two_giant_plans_do_not_hold_up_small_ones_of_anyone(
    quiet: Database,
    objects: ObjectStore,
    settings: Settings,
    valkey: LocalValkey,
    owner: str,
) -> None:
    celery = make_celery(settings)
    lists = redis.Redis.from_url(valkey.client_url)
    lists.flushdb()
    with quiet.system() as session:
        add_worker(session, Queue.IO, slots=2)
    giants = [add_job(quiet, objects, owner, GIANT_ITEMS) for _ in range(2)]
    started = threading.Barrier(3, timeout=60)
    hasty = settings.model_copy(update={"io_turn_seconds": 0.2})
    planned: list[str] = []
    over = threading.Event()

    def serve_slot() -> None:
        """What one slot of an io worker does."""
        waits_for_start = True
        while not over.is_set():
            if lists.brpop([Queue.IO], timeout=1) is None:
                continue
            with quiet.system() as session:
                rung = session.query(Chunk.id, Chunk.tenant_id, Chunk.job_id).where(
                    Chunk.state == ChunkState.PENDING, Chunk.last_rung_at.is_not(None)
                )
                bells = list(rung.order_by(Chunk.last_rung_at))
            for bell in bells:
                # Any rung chunk serves as well as the bell's own: a bell is a hint.
                lease = try_claim(quiet, bell.tenant_id, bell.id, task=ChunkTask.PLAN)
                if lease is not None:
                    break
            else:
                continue
            is_giant = bell.job_id in giants
            if is_giant and waits_for_start:
                started.wait()
                waits_for_start = False

            def look(slow: bool = is_giant) -> bool:
                # A storage that takes its time: so a giant takes many seconds.
                time.sleep(0.05 if slow else 0)
                return over.is_set()

            if plan.plan_job(quiet, objects, hasty, lease, should_stop=look):
                planned.append(bell.job_id)
            else:
                with quiet.tenant(bell.tenant_id) as session:
                    release_chunk(session, lease)
            if len(planned) == 4:
                over.set()

    def dispatch() -> None:
        while not over.wait(0.05):
            relay_once(quiet, celery, ring_again_seconds=5, alive_seconds=600)

    with ThreadPoolExecutor(3) as slots:
        running = [slots.submit(step) for step in (dispatch, serve_slot, serve_slot)]
        try:
            # Both giants hold a slot each before the small ones come.
            started.wait()
            small = [add_job(quiet, objects, each, 20) for each in (make_tenant(quiet), owner)]
            over.wait(120)
        finally:
            over.set()
            celery.close()
        for each in running:
            each.result()
    assert set(planned[:2]) == set(small)
    assert set(planned[2:]) == set(giants)
    for giant in giants:
        assert look_at_job(quiet, owner, giant).state == JobState.QUEUED
        assert len(all_items(quiet, giant)) == GIANT_ITEMS
    lists.close()
