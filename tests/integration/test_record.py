"""The one transaction in which work becomes result: fenced, counted once, closed once."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.db.session import Database
from app.errors import FencedError
from app.jobs.claim import Lease
from app.jobs.items import unpack_items
from app.jobs.record import record_chunk, record_failure, record_part, record_prefix, record_stopped
from app.jobs.results import page_results
from app.jobs.states import ChunkState, ItemState, JobKind, JobState
from app.jobs.tables import Item
from tests.jobs import (
    add_planned_job,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    finish,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_job,
    record_all,
    rows_of,
)


def test_last_record_closes_the_job(database: Database, tenant_id: str) -> None:
    job_id, chunks = make_job(database, tenant_id, 3, 2)
    for number, chunk in enumerate(chunks):
        assert look_at_job(database, tenant_id, job_id).ended_at is None
        finish(database, tenant_id, chunk)
        assert look_at_job(database, tenant_id, job_id).seq == number + 1
    job = assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    assert (job.total, job.succeeded) == (5, 5)


@pytest.mark.parametrize(
    ("failed", "outcome", "code"),
    [
        ([1], JobState.PARTIALLY_SUCCEEDED, None),
        ([0, 1, 2], JobState.FAILED, "all_items_failed"),
    ],
)
def test_failed_items_decide_how_the_job_ends(
    database: Database, tenant_id: str, failed: list[int], outcome: JobState, code: str | None
) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 3)
    finish(database, tenant_id, chunk, *failed)
    job = assert_closed(database, tenant_id, job_id, outcome)
    assert job.failed == len(failed)
    assert (job.error or {}).get("code") == code


def test_attempt_that_lost_its_lease_writes_nothing_at_all(
    database: Database, tenant_id: str
) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 3)
    old = claim(database, tenant_id, chunk)
    lose_worker(database, chunk)
    new = claim(database, tenant_id, chunk)
    rows = rows_of(old)
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_chunk(session, old, rows)
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_prefix(session, old, rows[:1])
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_part(session, old, rows[:1], cursor={}, lease_seconds=30)
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_stopped(session, old, rows[:1])
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_failure(session, old, {"code": "x", "detail": "y"})
    job = look_at_job(database, tenant_id, job_id)
    assert (job.state, job.seq, job.succeeded) == (JobState.RUNNING, 0, 0)
    with database.tenant(tenant_id) as session:
        assert session.scalar(select(Item.ordinal).where(Item.job_id == job_id)) is None
        record_chunk(session, new, rows)
    assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)


def test_record_that_arrives_twice_counts_once(database: Database, tenant_id: str) -> None:
    job_id, chunks = make_job(database, tenant_id, 3, 2)
    lease = claim(database, tenant_id, chunks[0])

    def record() -> str:
        record_all(database, lease)
        return "recorded"

    answers = at_once(*[record] * 4)
    assert answers.count("recorded") == 1
    assert sum(isinstance(answer, FencedError) for answer in answers) == 3
    assert look_at_job(database, tenant_id, job_id).succeeded == 3


def test_chunks_recorded_at_the_same_moment_all_count_and_one_closes_the_job(
    database: Database, tenant_id: str
) -> None:
    job_id, chunks = make_job(database, tenant_id, 2, 3, 4, 5)
    leases = [claim(database, tenant_id, chunk) for chunk in chunks]

    def record(number: int) -> None:
        record_all(database, leases[number])

    answers = at_once(*(lambda number=number: record(number) for number in range(4)))
    assert answers == [None] * 4
    job = assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    assert (job.total, job.seq) == (14, 4)


def test_prefix_is_kept_and_the_rest_waits_with_its_own_items(
    database: Database, tenant_id: str
) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 5)
    lease = claim(database, tenant_id, chunk)
    with database.tenant(tenant_id) as session:
        record_prefix(session, lease, rows_of(lease, 2))
    row = look_at_chunk(database, chunk)
    assert (row.state, row.lo, row.hi, row.kills) == (ChunkState.PENDING, 2, 5, 0)
    rest = claim(database, tenant_id, chunk)
    assert [item.key for item in unpack_items(rest.items or {})] == ["2.png", "3.png", "4.png"]
    record_all(database, rest)
    job = assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    with database.tenant(tenant_id) as session:
        page = page_results(session, tenant_id, job)
    assert [item.ordinal for item in page.items] == [0, 1, 2, 3, 4]


def test_chunk_whose_results_are_too_few_is_refused(database: Database, tenant_id: str) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 3)
    lease = claim(database, tenant_id, chunk)
    with (
        pytest.raises(ValueError, match="2 results for 3 items"),
        database.tenant(tenant_id) as session,
    ):
        record_chunk(session, lease, rows_of(lease, 2))
    with (
        pytest.raises(ValueError, match="leaves at least one"),
        database.tenant(tenant_id) as session,
    ):
        record_prefix(session, lease, rows_of(lease))
    assert look_at_job(database, tenant_id, job_id).succeeded == 0


def test_failing_job_keeps_what_had_finished_and_fences_all_others(
    database: Database, tenant_id: str
) -> None:
    job_id, chunks = make_job(database, tenant_id, 2, 2, 2, 2)
    leases = [claim(database, tenant_id, chunk) for chunk in chunks[:3]]
    record_all(database, leases[0])
    with database.tenant(tenant_id) as session:
        record_failure(session, leases[1], {"code": "model_not_ready", "detail": "gone"})
    with pytest.raises(FencedError), database.tenant(tenant_id) as session:
        record_chunk(session, leases[2], rows_of(leases[2]))
    job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
    assert (job.succeeded, job.cancelled) == (2, 6)
    assert job.error == {"code": "model_not_ready", "detail": "gone"}


def test_workers_that_fail_one_job_at_the_same_moment_do_not_block_each_other(
    database: Database, tenant_id: str
) -> None:
    for _ in range(4):
        job_id, chunks = make_job(database, tenant_id, *[1] * 60)
        leases = [claim(database, tenant_id, chunk) for chunk in (chunks[0], chunks[-1])]

        def fail(number: int, leases: list[Lease] = leases) -> str:
            with database.tenant(tenant_id) as session:
                record_failure(session, leases[number], {"code": "x", "detail": "y"})
            return "failed"

        first, second = at_once(lambda: fail(0), lambda: fail(1))
        kinds = sorted(type(answer).__name__ for answer in (first, second))
        assert kinds == ["FencedError", "str"], (first, second)
        assert_closed(database, tenant_id, job_id, JobState.FAILED)


def test_record_and_failure_at_the_same_moment_leave_counts_that_sum(
    database: Database, tenant_id: str
) -> None:
    for _ in range(4):
        job_id, chunks = make_job(database, tenant_id, 3, 3, 3)
        leases = [claim(database, tenant_id, chunk) for chunk in chunks]

        def record(number: int, leases: list[Lease] = leases) -> None:
            with database.tenant(tenant_id) as session:
                if number == 1:
                    record_failure(session, leases[1], {"code": "x", "detail": "y"})
                else:
                    record_chunk(session, leases[number], rows_of(leases[number]))

        answers = at_once(lambda: record(0), lambda: record(1), lambda: record(2))
        assert all(answer is None or isinstance(answer, FencedError) for answer in answers)
        job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
        assert job.total == 9


def test_part_that_gets_on_forgets_its_kills_and_one_that_stands_still_does_not(
    database: Database, tenant_id: str
) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 4)
    claim(database, tenant_id, chunk)
    lose_worker(database, chunk)
    lease = claim(database, tenant_id, chunk)
    with database.tenant(tenant_id) as session:
        progress = {"step": 1, "steps": 3, "unit": "epoch"}
        record_part(session, lease, cursor={"epoch": 1}, progress=progress, lease_seconds=30)
    assert look_at_chunk(database, chunk).kills == 1
    assert look_at_job(database, tenant_id, job_id).progress == progress
    with database.tenant(tenant_id) as session:
        record_part(session, lease, rows_of(lease, 1), cursor={"members": 1}, lease_seconds=30)
    row = look_at_chunk(database, chunk)
    assert (row.kills, row.cursor) == (0, {"members": 1})
    lose_worker(database, chunk)
    lease = claim(database, tenant_id, chunk)
    with database.tenant(tenant_id) as session:
        record_part(session, lease, cursor={"epoch": 2}, gained=True, lease_seconds=30)
    assert look_at_chunk(database, chunk).kills == 0


def test_columns_without_a_value_are_null_and_not_the_word_null_of_json(
    database: Database, tenant_id: str
) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 2)
    finish(database, tenant_id, chunk, 1)
    with database.tenant(tenant_id) as session:
        rows = session.execute(
            select(Item.prediction.is_(None), Item.error.is_(None), Item.metadata_.is_(None))
            .where(Item.job_id == job_id)
            .order_by(Item.ordinal)
        ).all()
    assert [tuple(row) for row in rows] == [(False, True, True), (True, False, True)]


def test_open_job_pages_by_recording_so_that_late_chunks_are_not_missed(
    database: Database, tenant_id: str
) -> None:
    job_id, chunks = make_job(database, tenant_id, 2, 2, 2)
    late, soon = claim(database, tenant_id, chunks[0]), claim(database, tenant_id, chunks[1])
    record_all(database, soon)
    with database.tenant(tenant_id) as session:
        page = page_results(session, tenant_id, look_at_job(database, tenant_id, job_id))
    assert [item.ordinal for item in page.items] == [2, 3]
    record_all(database, late)
    with database.tenant(tenant_id) as session:
        job = look_at_job(database, tenant_id, job_id)
        page = page_results(session, tenant_id, job, cursor=page.cursor)
    assert [item.ordinal for item in page.items] == [0, 1]


def test_job_without_items_closes_with_what_it_made(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 0, kind=JobKind.EXPORT)
    (chunk,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, chunk)
    with database.tenant(tenant_id) as session:
        record_chunk(session, lease, result={"rows": 0})
    job = assert_closed(database, tenant_id, job_id, JobState.SUCCEEDED)
    assert job.result == {"rows": 0}


def test_items_of_all_states_are_counted_apart(database: Database, tenant_id: str) -> None:
    job_id, (chunk,) = make_job(database, tenant_id, 3)
    lease = claim(database, tenant_id, chunk)
    rows = rows_of(lease, failed=[1])
    rows[2] = type(rows[2])(2, "item 2", "s3://photos", ItemState.SKIPPED)
    with database.tenant(tenant_id) as session:
        record_chunk(session, lease, rows)
    job = assert_closed(database, tenant_id, job_id, JobState.PARTIALLY_SUCCEEDED)
    assert (job.succeeded, job.failed, job.skipped) == (1, 1, 1)
