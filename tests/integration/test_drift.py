"""Drift on real PostgreSQL: broken by hand, seen in one snapshot, repaired under the job's lock."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Connection, event, text, update

from app.db.session import Database
from app.dispatch import drift
from app.dispatch.drift import Recount, recount_jobs
from app.jobs.claim import Lease
from app.jobs.record import record_prefix
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk, Job
from tests.jobs import (
    add_planned_job,
    assert_closed,
    at_once,
    chunk_ids,
    claim,
    finish,
    look_at_job,
    record_all,
    rows_of,
)


def half_done(db: Database, tenant_id: str) -> tuple[str, Lease]:
    """A job of two chunks of which one is recorded and one is held."""
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 5, 4)
    first, second = chunk_ids(db, job_id)
    finish(db, tenant_id, first, 1)
    return job_id, claim(db, tenant_id, second)


def test_jobs_that_are_well_are_counted_and_left_alone(quiet: Database, owner: str) -> None:
    _, lease = half_done(quiet, owner)
    with quiet.tenant(owner) as session:
        record_prefix(session, lease, rows_of(lease, 1))
    assert recount_jobs(quiet) == Recount(counted=1, repaired=0, torn=0, after=None)


def test_small_jobs_beside_giants_are_counted_without_reading_the_giants(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        small = [add_planned_job(session, owner, 2) for _ in range(2)]
    with quiet.system() as session:
        session.execute(
            text(
                """
                INSERT INTO items
                    (job_id, ordinal, tenant_id, seq, attempt, custom_id, source, state)
                SELECT giant, ordinal, :owner, 1, 1, ordinal::text, '', 'succeeded'
                FROM (VALUES ('job_giant_1'), ('job_giant_2')) giants(giant),
                     generate_series(1, 20000) ordinal
                """
            ),
            {"owner": owner},
        )
        session.execute(text("ANALYZE items"))
    scans: list[int] = []

    def look(connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'items'")
        scans.extend(cursor.fetchone() or ())

    engine = quiet._system_engine
    for moment in ("begin", "commit"):
        event.listen(engine, moment, look)
    try:
        assert recount_jobs(quiet).counted == len(small)
    finally:
        for moment in ("begin", "commit"):
            event.remove(engine, moment, look)
    before, after = scans
    assert after == before


def test_counters_that_are_off_are_set_to_what_the_items_say(quiet: Database, owner: str) -> None:
    job_id, lease = half_done(quiet, owner)
    with quiet.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(succeeded=2, failed=0))
    assert recount_jobs(quiet) == Recount(counted=1, repaired=1, torn=0, after=None)
    job = look_at_job(quiet, owner, job_id)
    assert (job.succeeded, job.failed, job.skipped) == (4, 1, 0)
    assert recount_jobs(quiet).repaired == 0
    # And the job ends as if nothing had been.
    record_all(quiet, lease)
    assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)


def test_items_that_are_missing_are_told_and_never_counted_away(
    quiet: Database, owner: str
) -> None:
    job_id, lease = half_done(quiet, owner)
    with quiet.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == lease.chunk_id)
            .values(state=ChunkState.DONE, lease_until=None)
        )
    assert recount_jobs(quiet) == Recount(counted=1, repaired=0, torn=1, after=None)
    assert look_at_job(quiet, owner, job_id).total == 9


def test_rotation_looks_at_every_open_job_once(
    quiet: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_RECOUNT_BATCH", 2)
    for _ in range(5):
        half_done(quiet, owner)
    counted, after = 0, None
    while True:
        step = recount_jobs(quiet, after)
        counted += step.counted
        after = step.after
        if after is None:
            break
    assert counted == 5


def test_recordings_meanwhile_are_no_drift_and_repair_of_one_job_happens_once(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, *[1] * 60)
    chunks = chunk_ids(quiet, job_id)
    ended = threading.Event()

    def record() -> int:
        for chunk in chunks:
            finish(quiet, owner, chunk)
        ended.set()
        return 0

    def recount() -> int:
        repaired = torn = 0
        while not ended.is_set():
            step = recount_jobs(quiet)
            repaired += step.repaired
            torn += step.torn
        return repaired + torn

    assert at_once(record, recount, recount) == [0, 0, 0]
    assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)
    job_id, _ = half_done(quiet, owner)
    with quiet.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(succeeded=0))
    steps = at_once(*[lambda: recount_jobs(quiet)] * 3)
    assert sum(step.repaired for step in steps if isinstance(step, Recount)) == 1
