"""Giant inputs are read in stints: whoever waits for a place comes between two of them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial

import pytest
from sqlalchemy import select, update

from app.db.session import Database
from app.dispatch.relay import relay_once
from app.jobs import plan
from app.jobs.claim import Lease, release_chunk
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.stint import Stint
from app.jobs.tables import Chunk
from app.queues.names import Queue
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.jobs import chunk_ids, claim, look_at_chunk, look_at_job, try_claim
from tests.plans import BUCKET, all_items, put, submit
from tests.relay import Bells, add_workers
from tests.service import wait_until

GIANT_ITEMS = 12_000
#: Looks at whether to stop, of some fifty in a giant, before which it has let others go first.
GIVES_WAY_WITHIN = 20


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
    bells: Bells,
    owner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_workers(quiet, queue=Queue.IO)
    giants = [add_job(quiet, objects, owner, GIANT_ITEMS) for _ in range(2)]
    hasty = settings.model_copy(update={"io_turn_seconds": 0.2})
    # Each slot has a time of its own, in which a giant's look takes half a second.
    clock = threading.local()
    monkeypatch.setattr("app.jobs.stint.monotonic_seconds", lambda: getattr(clock, "now", 0.0))
    both_work = threading.Barrier(3, timeout=60)
    small_wait, small_planned, over = threading.Event(), threading.Event(), threading.Event()
    looks = dict.fromkeys(giants, 0)
    planned: list[str] = []

    def look_of_giant(job_id: str) -> bool:
        clock.now = getattr(clock, "now", 0.0) + 0.5
        looks[job_id] += 1
        if looks[job_id] == 1:
            both_work.wait()
            assert small_wait.wait(60)
        if looks[job_id] == GIVES_WAY_WITHIN:
            assert small_planned.wait(60), "the giants went on while others waited"
        return over.is_set()

    def serve_slot() -> None:
        """What one slot of an io worker does."""
        while not over.is_set():
            if bells.redis.brpop([Queue.IO], timeout=1) is None:
                continue
            lease = claim_rung(quiet)
            if lease is None:
                continue
            is_giant = lease.job_id in giants
            look = partial(look_of_giant, lease.job_id) if is_giant else over.is_set
            if plan.plan_job(quiet, objects, hasty, lease, should_stop=look):
                planned.append(lease.job_id)
            else:
                with quiet.tenant(lease.tenant_id) as session:
                    release_chunk(session, lease)
            if len(planned) == 2:
                small_planned.set()
            if len(planned) == 4:
                over.set()

    def dispatch() -> None:
        while not over.wait(0.05):
            relay_once(quiet, bells.celery, ring_again_seconds=5, alive_seconds=600)

    with ThreadPoolExecutor(3) as slots:
        running = [slots.submit(step) for step in (dispatch, serve_slot, serve_slot)]
        try:
            both_work.wait()
            small = [add_job(quiet, objects, each, 20) for each in (make_tenant(quiet), owner)]
            plans = [chunk_id for job_id in small for chunk_id in chunk_ids(quiet, job_id)]
            wait_until(
                lambda: all(look_at_chunk(quiet, each).last_rung_at for each in plans),
                "the small ones are rung",
            )
            small_wait.set()
            wait(running, 120, FIRST_EXCEPTION)
        finally:
            over.set()
        for each in running:
            each.result()
    assert set(planned[:2]) == set(small)
    assert set(planned[2:]) == set(giants)
    for giant in giants:
        assert look_at_job(quiet, owner, giant).state == JobState.QUEUED
        assert len(all_items(quiet, giant)) == GIANT_ITEMS


def claim_rung(db: Database) -> Lease | None:
    """The lease of the chunk that was rung first: any serves as well as the bell's own."""
    rung = (
        select(Chunk.id, Chunk.tenant_id)
        .where(Chunk.state == ChunkState.PENDING, Chunk.last_rung_at.is_not(None))
        .order_by(Chunk.last_rung_at)
    )
    with db.system() as session:
        waiting = session.execute(rung).all()
    leases = (try_claim(db, row.tenant_id, row.id, task=ChunkTask.PLAN) for row in waiting)
    return next((lease for lease in leases if lease is not None), None)
