"""Every two transactions that may meet on one chunk, in both orders, on real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.db.session import Database
from app.dispatch import leases
from app.dispatch.relay import relay_once
from app.dispatch.sweep import Swept, sweep_once
from app.errors import ConflictError, FencedError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease, claim_chunk, extend_lease
from app.jobs.idempotency import KeptAnswer, claim_key, keep_answer
from app.jobs.narrow import Narrowed, narrow_killed_chunk
from app.jobs.record import record_chunk
from app.jobs.states import ChunkState, ChunkTask, JobState
from tests.jobs import (
    add_worker,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    let_lease_end,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_job,
    rows_of,
    try_claim,
)
from tests.model.bells import RememberedBells
from tests.races import Race, record, take, tell


def beat(db: Database, lease: Lease) -> JobState | None:
    with db.tenant(lease.tenant_id) as session:
        return extend_lease(session, lease, lease_seconds=30)


def test_of_two_claims_the_second_waits_and_gets_nothing(
    quiet: Database, owner: str, race: Race
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    with quiet.tenant(owner) as session:
        assert take(session, owner, chunk) is not None
        second = race(lambda: try_claim(quiet, owner, chunk))
        second.waits()
    assert second.answer() is None
    assert look_at_chunk(quiet, chunk).attempt == 1


def test_sweep_that_meets_a_claim_leaves_the_chunk_alone(
    quiet: Database, owner: str, race: Race
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    lose_worker(quiet, chunk)
    with quiet.tenant(owner) as session:
        assert take(session, owner, chunk) is not None
        assert race(lambda: sweep_once(quiet, max_kills=1)).passes() == Swept()
    assert look_at_chunk(quiet, chunk).state == ChunkState.RUNNING


def test_claim_that_meets_a_narrowing_gets_a_half_or_nothing(
    quiet: Database, owner: str, race: Race
) -> None:
    _, (chunk,) = make_job(quiet, owner, 4)
    for _ in range(2):
        claim(quiet, owner, chunk)
        lose_worker(quiet, chunk)
    with quiet.system() as session:
        assert narrow_killed_chunk(session, owner, chunk) == Narrowed.HALVED

        def take_all() -> Lease | None:
            with quiet.tenant(owner) as other:
                return claim_chunk(
                    other,
                    owner,
                    chunk,
                    task=ChunkTask.PREDICT,
                    worker_id="wrk_b",
                    lease_seconds=30,
                    kills=None,
                )

        second = race(take_all)
        second.waits()
    lease = second.answer()
    assert isinstance(lease, Lease)
    assert (lease.lo, lease.hi, len((lease.items or {})["rows"])) == (0, 2, 2)


def test_heartbeat_that_is_first_keeps_its_chunk_from_the_sweep(
    quiet: Database, owner: str, race: Race
) -> None:
    _, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    with quiet.tenant(owner) as session:
        assert extend_lease(session, held, lease_seconds=30) == JobState.RUNNING
        assert race(lambda: leases.free_ended_leases(quiet)).passes() == 0
    assert leases.free_ended_leases(quiet) == 0
    assert look_at_chunk(quiet, chunk).kills == 0


@pytest.mark.parametrize("late", [beat, record])
def test_worker_that_comes_after_the_sweep_has_lost_its_lease(
    quiet: Database, owner: str, race: Race, late: Callable[[Database, Lease], Any]
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    with quiet.system() as session:
        # Its transaction is kept open here, which the function that opens one does not allow.
        assert leases._free_ended_leases(session) == 1
        second = race(lambda: late(quiet, held))
        second.waits()
    answer = second.answer()
    assert answer is None or isinstance(answer, FencedError)
    assert look_at_job(quiet, owner, job_id).succeeded == 0
    assert record(quiet, claim(quiet, owner, chunk)) == "recorded"
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_record_that_is_first_keeps_its_chunk_from_sweep_and_takeover(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    held = claim(quiet, owner, chunk)
    let_lease_end(quiet, chunk)
    with quiet.tenant(owner) as session:
        record_chunk(session, held, rows_of(held))
        assert race(lambda: sweep_once(quiet, max_kills=5)).passes() == Swept()
        assert race(lambda: try_claim(quiet, owner, chunk)).passes() is None
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_record_that_meets_a_takeover_is_refused(quiet: Database, owner: str, race: Race) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 3)
    late = claim(quiet, owner, chunk)
    lose_worker(quiet, chunk)
    with quiet.tenant(owner) as session:
        new = claim_chunk(
            session,
            owner,
            chunk,
            task=ChunkTask.PREDICT,
            worker_id="wrk_b",
            lease_seconds=30,
            kills=1,
        )
        # It sees a chunk that waits, which is not its own any more either.
        assert isinstance(race(lambda: record(quiet, late)).answer(), FencedError)
    assert new is not None
    assert isinstance(race(lambda: record(quiet, late)).answer(), FencedError)
    assert record(quiet, new) == "recorded"
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_late_record_that_meets_a_narrowing_is_refused(
    quiet: Database, owner: str, race: Race
) -> None:
    job_id, (chunk,) = make_job(quiet, owner, 4)
    claim(quiet, owner, chunk)
    lose_worker(quiet, chunk)
    late = claim(quiet, owner, chunk)
    lose_worker(quiet, chunk)
    with quiet.system() as session:
        assert narrow_killed_chunk(session, owner, chunk) == Narrowed.HALVED
        assert isinstance(race(lambda: record(quiet, late)).answer(), FencedError)
    for half in chunk_ids(quiet, job_id):
        record(quiet, claim(quiet, owner, half))
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_three_sweepers_at_once_do_each_thing_once(quiet: Database, owner: str) -> None:
    for _ in range(4):
        lost_id, lost = make_job(quiet, owner, *[1] * 20)
        stopped_id, _ = make_job(quiet, owner, *[2] * 20)
        killed_id, (killed,) = make_job(quiet, owner, 8)
        claim(quiet, owner, killed)
        lose_worker(quiet, killed)
        for chunk in [killed, *lost]:
            claim(quiet, owner, chunk)
            let_lease_end(quiet, chunk)
        tell(quiet, owner, stopped_id, cancel_job)
        answers = at_once(*[lambda: sweep_once(quiet, max_kills=5)] * 3)
        swept = [answer for answer in answers if isinstance(answer, Swept)]
        assert len(swept) == 3, answers
        # A sweeper passes by what another holds, so the narrowing may take a second look.
        last = sweep_once(quiet, max_kills=5)
        assert sum(one.freed for one in [*swept, last]) == 21
        assert sum(one.narrowed for one in [*swept, last]) == 1
        assert sum(one.repaired for one in [*swept, last]) == 0
        assert {look_at_chunk(quiet, chunk).kills for chunk in lost} == {1}
        assert assert_closed(quiet, owner, stopped_id, JobState.CANCELLED).cancelled == 40
        for job_id in (lost_id, killed_id):
            for chunk in chunk_ids(quiet, job_id):
                record(quiet, claim(quiet, owner, chunk))
            assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)


def test_two_dispatchers_at_once_ring_each_chunk_once(quiet: Database, owner: str) -> None:
    with quiet.system() as session:
        add_worker(session, slots=10)
    _, chunks = make_job(quiet, owner, *[1] * 12)
    bells = RememberedBells()

    def relay() -> int:
        return relay_once(quiet, bells.celery, ring_again_seconds=60, alive_seconds=60)

    answers = at_once(*[relay] * 4)
    assert all(isinstance(answer, int) for answer in answers), answers
    relay()
    assert sorted(bell.chunk_id for bell in bells.waiting) == sorted(chunks)


def test_request_under_a_key_in_flight_is_refused_and_later_has_the_same_answer(
    quiet: Database, owner: str, race: Race
) -> None:
    answer = KeptAnswer(202, {"id": "job_x"}, "/v1/jobs/job_x")

    def ask() -> KeptAnswer | None:
        with quiet.tenant(owner) as session:
            return claim_key(session, owner, "key", "0" * 64)

    with quiet.tenant(owner) as session:
        assert claim_key(session, owner, "key", "0" * 64) is None
        refused = race(ask).answer()
        assert isinstance(refused, ConflictError)
        assert refused.code == "idempotency_key_in_flight"
        keep_answer(session, owner, "key", "0" * 64, answer)
    assert race(ask).answer() == answer
