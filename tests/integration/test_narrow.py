"""Poison on real PostgreSQL: halves down to the one item, and nobody else is blamed."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
from sqlalchemy import select, update

from app.db.session import Database
from app.dispatch.sweep import Swept, sweep_once
from app.jobs.cancel import cancel_job
from app.jobs.items import unpack_items
from app.jobs.record import record_prefix
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk, Job
from tests.jobs import (
    assert_closed,
    at_once,
    claim,
    failed_items,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_job,
    record_all,
    rows_of,
    try_claim,
)


def open_chunks(db: Database, job_id: str) -> list[tuple[str, int, int]]:
    with db.system() as session:
        return [
            (row.id, row.lo, row.hi)
            for row in session.execute(
                select(Chunk.id, Chunk.lo, Chunk.hi)
                .where(Chunk.job_id == job_id, Chunk.state == ChunkState.PENDING)
                .order_by(Chunk.lo)
            )
        ]


def work_off(db: Database, tenant_id: str, job_id: str, poison: Collection[int]) -> int:
    """Run all chunks; a worker that takes a poisonous item dies. How many died."""
    kills = 0
    while chunks := open_chunks(db, job_id):
        for chunk_id, _, _ in chunks:
            lease = claim(db, tenant_id, chunk_id)
            names = [item.custom_id for item in unpack_items(lease.items or {})]
            assert names == [f"item {ordinal}" for ordinal in range(lease.lo, lease.hi)]
            if set(poison) & set(range(lease.lo, lease.hi)):
                kills += 1
                let_lease_end(db, chunk_id)
            else:
                record_all(db, lease)
        sweep_once(db, max_kills=5)
    return kills


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.99])
def test_poison_costs_at_most_two_kills_and_one_for_each_halving(
    quiet: Database, owner: str, size: int, where: float
) -> None:
    job_id, _ = make_job(quiet, owner, 4, size, 5)
    poison = 4 + int(where * size)
    kills = work_off(quiet, owner, job_id, {poison})
    assert kills <= 2 + math.ceil(math.log2(size))
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.total, job.succeeded, job.failed) == (9 + size, 8 + size, 1)
    (item,) = failed_items(quiet, job_id)
    assert (item.ordinal, item.custom_id) == (poison, f"item {poison}")
    assert item.source == f"s3://photos/{poison}.png"
    assert (item.error or {})["code"] == "worker_killed"


def test_every_poisonous_item_of_a_chunk_is_found(quiet: Database, owner: str) -> None:
    job_id, _ = make_job(quiet, owner, 20)
    work_off(quiet, owner, job_id, {0, 7, 8, 19})
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed) == (16, 4)
    assert [item.ordinal for item in failed_items(quiet, job_id)] == [0, 7, 8, 19]


def test_job_of_poison_alone_fails(quiet: Database, owner: str) -> None:
    job_id, _ = make_job(quiet, owner, 2)
    work_off(quiet, owner, job_id, {0, 1})
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert (job.error or {})["code"] == "all_items_failed"


def test_first_kill_leaves_the_chunk_whole_and_the_second_makes_it_two_suspects(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 5)
    claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    assert sweep_once(quiet, max_kills=5) == Swept(freed=1)
    assert [rest[1:] for rest in open_chunks(quiet, job_id)] == [(0, 5)]
    claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    assert sweep_once(quiet, max_kills=5) == Swept(freed=1, narrowed=1)
    halves = open_chunks(quiet, job_id)
    assert [half[1:] for half in halves] == [(0, 3), (3, 5)]
    for chunk_id, lo, hi in halves:
        row = look_at_chunk(quiet, chunk_id)
        assert (row.kills, row.first_item, row.last_rung_at) == (1, lo, None)
        assert len(unpack_items(row.items or {})) == hi - lo
    assert look_at_job(quiet, owner, job_id).total == 5


def test_chunk_is_narrowed_within_what_is_left_of_it_and_its_recorded_items_keep_their_place(
    quiet: Database, owner: str
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 10)
    lease = claim(quiet, owner, chunk)
    with quiet.tenant(owner) as session:
        record_prefix(session, lease, rows_of(lease, 4))
    kills = work_off(quiet, owner, job_id, {9})
    assert kills <= 2 + math.ceil(math.log2(6))
    job = assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed) == (9, 1)


def test_recording_takes_the_suspicion_away(quiet: Database, owner: str) -> None:
    _, (chunk,) = make_job(quiet, owner, 6)
    claim(quiet, owner, chunk)
    lose_worker(quiet, chunk)
    lease = claim(quiet, owner, chunk)
    with quiet.tenant(owner) as session:
        record_prefix(session, lease, rows_of(lease, 1))
    assert look_at_chunk(quiet, chunk).kills == 0
    claim(quiet, owner, chunk)
    lose_worker(quiet, chunk)
    assert not sweep_once(quiet, max_kills=5)
    assert look_at_chunk(quiet, chunk).kills == 1


def test_sweepers_at_the_same_moment_narrow_once_and_end_an_item_once(
    quiet: Database, owner: str
) -> None:
    job_id, _ = make_job(quiet, owner, *[2] * 12, *[1] * 12)
    with quiet.system() as session:
        session.execute(update(Chunk).where(Chunk.job_id == job_id).values(kills=2))
    answers = at_once(*[lambda: sweep_once(quiet, max_kills=5)] * 3)
    swept = [answer for answer in answers if isinstance(answer, Swept)]
    assert len(swept) == 3, answers
    assert sum(one.narrowed for one in swept) == 12
    assert sum(one.poisonous for one in swept) == 12
    ranges = [rest[1:] for rest in open_chunks(quiet, job_id)]
    assert ranges == [(lo, lo + 1) for lo in range(24)]
    assert look_at_job(quiet, owner, job_id).failed == 12
    assert len(failed_items(quiet, job_id)) == 12


def test_chunk_that_must_be_narrowed_first_is_not_claimed_by_a_bell_in_between(
    quiet: Database, owner: str
) -> None:
    _, (chunk,) = make_job(quiet, owner, 4)
    for _ in range(2):
        claim(quiet, owner, chunk)
        lose_worker(quiet, chunk)
    assert try_claim(quiet, owner, chunk) is None
    assert sweep_once(quiet, max_kills=5) == Swept(narrowed=1)
    assert try_claim(quiet, owner, chunk) is not None


def test_last_item_of_a_held_job_waits_and_of_a_cancelled_one_is_cancelled(
    quiet: Database, owner: str
) -> None:
    held_id, (held,) = make_job(quiet, owner, 1)
    told_id, (told,) = make_job(quiet, owner, 1)
    with quiet.system() as session:
        session.execute(update(Chunk).where(Chunk.id.in_([held, told])).values(kills=2))
        session.execute(update(Job).where(Job.id == held_id).values(state=JobState.PAUSED))
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, told_id)
    sweep_once(quiet, max_kills=5)
    assert assert_closed(quiet, owner, told_id, JobState.CANCELLED).cancelled == 1
    assert look_at_chunk(quiet, held).state == ChunkState.PENDING
    with quiet.system() as session:
        session.execute(update(Job).where(Job.id == held_id).values(state=JobState.RUNNING))
    assert sweep_once(quiet, max_kills=5) == Swept(poisonous=1)
    assert_closed(quiet, owner, held_id, JobState.FAILED)
