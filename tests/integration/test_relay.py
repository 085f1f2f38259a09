"""The relay on real PostgreSQL and Valkey: which chunks are rung, and how many at most."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, func, text, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.offers import _OFFERS
from app.dispatch.relay import _BUSY
from app.dispatch.turns import STEP
from app.errors import UnavailableError
from app.jobs.states import ChunkState, ChunkTask, JobState
from app.jobs.tables import Chunk, WorkerRow
from app.queues.names import Queue
from app.settings import Settings
from app.stack.valkey import LocalValkey
from tests.factories import add_job
from tests.jobs import add_chunk, at_once, chunk_ids, claim, finish, look_at_chunk, make_job
from tests.relay import Bells, add_many_chunks, add_workers, age_bells, outstanding


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
    finish(quiet, owner, chunks[0])
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
    finish(quiet, owner, first[0])
    assert bells.ring() == 1
    assert bells.take() == [small]


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
        bells.close()
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
