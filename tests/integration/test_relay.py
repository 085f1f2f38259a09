"""The relay on real PostgreSQL and Valkey: who is rung, in which order, and how many at most."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import TextClause, func, select, text, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.offers import _OFFERS, drop_old_turns
from app.dispatch.relay import _BUSY, relay_once
from app.dispatch.turns import QUANTUM, STEP
from app.errors import UnavailableError
from app.jobs.record import record_chunk
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk, Job, TurnRow, WorkerRow
from app.queues.celery import make_celery
from app.queues.names import Queue
from app.settings import Settings
from app.stack.valkey import LocalValkey
from tests.factories import add_job, make_tenant
from tests.jobs import (
    add_chunk,
    add_planned_job,
    add_worker,
    at_once,
    chunk_ids,
    claim,
    look_at_chunk,
    rows_of,
)


class Bells:
    """A relay with the queue lists that it rings into."""

    def __init__(self, db: Database, settings: Settings, url: str) -> None:
        self.db = db
        self.redis = redis.Redis.from_url(url)
        self.celery: Celery = make_celery(settings)

    def ring(self) -> int:
        """One round."""
        return relay_once(self.db, self.celery, ring_again_seconds=5, alive_seconds=30)

    def take(self, queue: Queue = Queue.INFERENCE) -> list[str]:
        """The chunk ids of all bells that wait in the queue, in their order; empties it."""
        messages = [json.loads(body) for body in reversed(self.redis.lrange(queue, 0, -1))]
        self.redis.delete(queue)
        return [
            json.loads(base64.b64decode(message["body"]))[1]["chunk_id"] for message in messages
        ]


@pytest.fixture
def owner(quiet: Database) -> str:
    """A tenant in the second database."""
    return make_tenant(quiet)


@pytest.fixture
def bells(quiet: Database, settings: Settings, valkey: LocalValkey) -> Iterator[Bells]:
    """A relay over the second database and an empty Valkey."""
    bells = Bells(quiet, settings, valkey.client_url)
    bells.redis.flushdb()
    yield bells
    bells.celery.close()
    bells.redis.close()


def make_job(db: Database, tenant_id: str, *sizes: int, priority: int = 0) -> tuple[str, list[str]]:
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, *sizes, priority=priority)
    return job_id, chunk_ids(db, job_id)


def serve(bells: Bells, db: Database) -> list[str]:
    """Ring once and do the work of every bell; whose chunks they were, in the bells' order."""
    bells.ring()
    owners = []
    for chunk_id in bells.take():
        chunk = look_at_chunk(db, chunk_id)
        work(db, chunk.tenant_id, chunk_id)
        owners.append(chunk.tenant_id)
    return owners


def add_workers(db: Database, count: int = 1, slots: int = 2, queue: Queue | None = None) -> None:
    with db.system() as session:
        for _ in range(count):
            add_worker(session, queue or Queue.INFERENCE, slots)


def age_bells(db: Database, seconds: float = 60) -> None:
    """Let every bell be that much older."""
    with db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.last_rung_at.is_not(None))
            .values(last_rung_at=Chunk.last_rung_at - func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        )


def outstanding(db: Database) -> int:
    """Chunks that are in work or have a bell on its way."""
    with db.system() as session:
        return (
            session.scalar(
                select(func.count()).where(
                    (Chunk.state == ChunkState.RUNNING)
                    | ((Chunk.state == ChunkState.PENDING) & Chunk.last_rung_at.is_not(None))
                )
            )
            or 0
        )


def work(db: Database, tenant_id: str, chunk_id: str) -> None:
    lease = claim(db, tenant_id, chunk_id)
    with db.tenant(tenant_id) as session:
        record_chunk(session, lease, rows_of(lease))


def add_many_chunks(db: Database, tenant_id: str, count: int) -> str:
    """A queued job of so many chunks of 256 items, each with a column of references."""
    job_id, (first,) = make_job(db, tenant_id, 256)
    with db.system() as session:
        session.execute(
            text(
                "INSERT INTO chunks (id, tenant_id, job_id, task, queue, state, lo, hi, items,"
                " attempt, kills, progress) SELECT id || '_' || n, tenant_id, job_id, task, queue,"
                " state, n * 256, n * 256 + 256, items, 0, 0, 0"
                " FROM chunks, generate_series(1, :more) n WHERE id = :first"
            ),
            {"first": first, "more": count - 1},
        )
        session.execute(update(Job).where(Job.id == job_id).values(total=256 * count))
    return job_id


def test_nothing_is_rung_where_no_worker_lives(bells: Bells, quiet: Database, owner: str) -> None:
    make_job(quiet, owner, 1, 1)
    assert bells.ring() == 0
    add_workers(quiet, queue=Queue.IO)
    assert bells.ring() == 0
    add_workers(quiet)
    with quiet.system() as session:
        session.execute(
            update(WorkerRow).values(last_seen_at=func.now() - text("interval '1 minute'"))
        )
    assert bells.ring() == 0


def test_each_slot_gets_one_chunk_to_compute_and_one_that_waits(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, count=2, slots=2)
    _, chunks = make_job(quiet, owner, *[1] * 20)
    assert bells.ring() == 8
    assert bells.ring() == 0
    assert bells.take() == chunks[:8]
    work(quiet, owner, chunks[0])
    claim(quiet, owner, chunks[1])
    assert bells.ring() == 1
    assert bells.take() == chunks[8:9]


def test_small_job_behind_a_huge_one_is_rung_in_the_next_round(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet)
    huge = add_many_chunks(quiet, owner, 4000)
    first = chunk_ids(quiet, huge)[:4]
    assert bells.ring() == 4
    assert bells.take() == first
    _, (small,) = make_job(quiet, owner, 20)
    work(quiet, owner, first[0])
    assert bells.ring() == 1
    assert bells.take() == [small]


def test_two_tenants_take_turns_whatever_each_has_queued(
    bells: Bells, quiet: Database, owner: str
) -> None:
    other = make_tenant(quiet)
    add_workers(quiet, count=2)
    mine = set()
    for _ in range(5):
        _, chunks = make_job(quiet, owner, *[1] * 10, priority=10)
        mine.update(chunks)
    make_job(quiet, other, *[1] * 10)
    bells.ring()
    turns = [chunk in mine for chunk in bells.take()]
    assert len(turns) == 8
    assert sum(turns) == 4
    assert all(turns[at] != turns[at + 1] for at in range(0, 8, 2))


def test_three_tenants_share_one_slot_over_many_rounds(
    bells: Bells, quiet: Database, owner: str
) -> None:
    tenants = [owner, make_tenant(quiet), make_tenant(quiet)]
    add_workers(quiet, slots=1)
    for tenant in tenants:
        for _ in range(2):
            make_job(quiet, tenant, *[1] * 5)
    served = [each for _ in range(9) for each in serve(bells, quiet)]
    assert len(served) == 18
    assert all(set(served[at : at + 3]) == set(tenants) for at in range(0, 18, 3))


def test_jobs_of_one_tenant_take_turns_over_many_rounds(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=1)
    jobs = {}
    for _ in range(5):
        job_id, chunks = make_job(quiet, owner, *[1] * 4)
        jobs.update(dict.fromkeys(chunks, job_id))
    order = []
    for _ in range(5):
        bells.ring()
        for chunk_id in bells.take():
            work(quiet, owner, chunk_id)
            order.append(jobs[chunk_id])
    assert len(set(order[:5])) == len(set(order[5:])) == 5


def test_turns_are_by_time_and_not_by_number_of_chunks(
    bells: Bells, quiet: Database, owner: str
) -> None:
    other = make_tenant(quiet)
    add_workers(quiet, slots=1)
    make_job(quiet, owner, *[8] * 10)
    # Quarters: a model version whose full chunks hold four times as many items.
    job_id, _ = make_job(quiet, other, *[8] * 40)
    with quiet.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(chunk_items=32))
    served = [each for _ in range(10) for each in serve(bells, quiet)]
    assert (served.count(owner), served.count(other)) == (4, 16)


def test_new_tenant_is_rung_in_the_next_round(bells: Bells, quiet: Database, owner: str) -> None:
    add_workers(quiet, slots=1)
    for tenant in [owner, *[make_tenant(quiet) for _ in range(4)]]:
        make_job(quiet, tenant, *[1] * 10)
    for _ in range(4):
        serve(bells, quiet)
    late = make_tenant(quiet)
    make_job(quiet, late, 1)
    assert serve(bells, quiet)[0] == late


def test_turns_of_ended_jobs_are_forgotten_and_of_waiting_ones_kept(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=1)
    ended, _ = make_job(quiet, owner, 1)
    waiting, _ = make_job(quiet, owner, *[1] * 3)
    serve(bells, quiet)
    long_ago = TurnRow.since - func.make_interval(0, 0, 0, 0, 0, 0, 600)
    with quiet.system() as session:
        session.execute(update(TurnRow).values(since=long_ago))
    drop_old_turns(quiet)
    with quiet.system() as session:
        kept = session.execute(select(TurnRow.job_id, TurnRow.deficit)).all()
    assert {row.job_id for row in kept} == {"", waiting}
    assert all(row.deficit <= QUANTUM for row in kept)
    assert ended not in {row.job_id for row in kept}


def test_priority_orders_the_jobs_of_one_tenant(bells: Bells, quiet: Database, owner: str) -> None:
    add_workers(quiet)
    make_job(quiet, owner, *[1] * 3)
    _, urgent = make_job(quiet, owner, *[1] * 3, priority=5)
    bells.ring()
    assert bells.take()[:3] == urgent


def test_old_bells_are_rung_again_only_where_a_slot_is_idle(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=2)
    _, chunks = make_job(quiet, owner, *[1] * 10)
    assert bells.ring() == 4
    bells.take()
    for chunk in chunks[:2]:
        claim(quiet, owner, chunk)
    age_bells(quiet)
    # Both slots compute: nobody can answer, so a bell that stays unanswered is not lost.
    assert bells.ring() == 0
    lease_of_first = look_at_chunk(quiet, chunks[0])
    with quiet.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == lease_of_first.id)
            .values(state=ChunkState.DONE, lease_until=None)
        )
    # One slot is idle: the two old bells again, and one new for what has ended.
    assert bells.ring() == 3
    assert set(bells.take()) == set(chunks[2:5])
    assert bells.ring() == 0


def test_deaf_workers_never_make_more_than_two_chunks_a_slot_wait(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=2)
    make_job(quiet, owner, *[1] * 30)
    for _ in range(5):
        assert bells.ring() == 4
        assert outstanding(quiet) == 4
        age_bells(quiet)


def test_relays_at_the_same_moment_ring_each_chunk_once(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, count=3)
    make_job(quiet, owner, *[1] * 30)
    answers = at_once(*[bells.ring] * 4)
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    rung = bells.take()
    assert len(rung) == len(set(rung)) == outstanding(quiet) == 12


def test_chunks_that_are_not_due_or_not_wanted_are_not_rung(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet)
    add_workers(quiet, queue=Queue.IO)
    _, (later,) = make_job(quiet, owner, 1)
    with quiet.tenant(owner) as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == later)
            .values(due_at=func.now() + text("interval '1 minute'"))
        )
        for state in (JobState.VALIDATING, JobState.CANCELLING):
            job = add_job(session, owner, state=state)
            add_chunk(session, job, ChunkTask.PREDICT, 0, 1)
            plan = add_chunk(session, job, ChunkTask.PLAN)
            if state == JobState.VALIDATING:
                wanted = plan.id
    assert bells.ring() == 1
    assert bells.take(Queue.IO) == [wanted]


def test_bells_lost_with_redis_are_rung_again(bells: Bells, quiet: Database, owner: str) -> None:
    add_workers(quiet)
    _, chunks = make_job(quiet, owner, *[1] * 4)
    assert bells.ring() == 4
    bells.redis.flushall()
    assert bells.ring() == 0
    age_bells(quiet, 6)
    assert bells.ring() == 4
    assert set(bells.take()) == set(chunks)


def test_relay_tells_that_redis_is_down_and_goes_on_once_it_is_back(
    quiet: Database, owner: str, settings: Settings, tmp_path: Path
) -> None:
    own = LocalValkey(tmp_path)
    own.start()
    bells = Bells(
        quiet, settings.model_copy(update={"redis_url": SecretStr(own.url)}), own.client_url
    )
    try:
        add_workers(quiet)
        _, chunks = make_job(quiet, owner, *[1] * 8)
        assert bells.ring() == 4
        bells.take()
        own.stop()
        age_bells(quiet)
        with pytest.raises(UnavailableError):
            bells.ring()
        assert outstanding(quiet) == 4
        own.start()
        age_bells(quiet, 6)
        assert bells.ring() == 4
        assert set(bells.take()) == set(chunks[:4])
    finally:
        bells.celery.close()
        bells.redis.close()
        own.stop()


def rows_read(session: Session, statement: TextClause, words: dict[str, object]) -> int:
    """Rows of ``chunks`` that the statement touches, by PostgreSQL's own account."""
    explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
    nodes = [session.execute(explained, words).scalar_one()[0]["Plan"]]
    total = 0
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == "chunks":
            seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            total += int(seen * node["Actual Loops"])
    return total


def test_round_reads_what_is_in_work_and_not_what_waits(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, count=2)
    for _ in range(5):
        add_many_chunks(quiet, owner, 4000)
    with quiet.system() as session:
        session.execute(text("ANALYZE chunks"))
    assert bells.ring() == 8
    with quiet.system() as session:
        busy = rows_read(session, _BUSY, {"again_seconds": 5, "holding_tasks": []})
        words = {
            "queue": Queue.INFERENCE.value,
            "plans": False,
            "wanted": 8,
            "head_chunks": 4,
            "step": STEP,
            "left_out": [],
        }
        offers = rows_read(session, _OFFERS, words)
    # Eight are in work, and each of five jobs offers its first four of 4,000 chunks.
    assert busy <= 8
    assert offers <= 30
