"""How inputs are read, in database and model at once: plans cut chunks, ingests pack shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from app.jobs.record import record_part, record_plan
from app.jobs.states import ChunkTask, ItemState
from app.jobs.tables import Job
from tests.jobs import add_chunk
from tests.model.drive import Driver, key
from tests.model.values import LEASE_SECONDS, Attempt, rows_for


def plan_more(driver: Driver, attempt: Attempt, sizes: Sequence[int]) -> None:
    """A plan commits the chunks it has cut together with the position they reach."""
    lease, added = attempt.lease, sum(sizes)
    cut: list[tuple[str, int, int]] = []

    def write(session: Session) -> None:
        cursor = {"position": attempt.position + added}
        record_part(session, lease, cursor=cursor, added=added, lease_seconds=LEASE_SECONDS)
        job, lo = session.get_one(Job, lease.job_id), attempt.position
        for size in sizes:
            chunk = add_chunk(session, job, ChunkTask.PREDICT, lo, lo + size)
            cut.append((chunk.id, lo, lo + size))
            lo += size

    taken = driver.write(attempt, write)
    assert taken == driver.world.record_part(*key(attempt), {}, added=added)
    if taken:
        attempt.position += added
        for chunk_id, lo, hi in cut:
            driver.world.add_chunk(lease.job_id, chunk_id, ChunkTask.PREDICT, lo, hi)


def plan_done(driver: Driver, attempt: Attempt) -> None:
    """A plan has read its whole input."""
    taken = driver.write(attempt, lambda s: record_plan(s, attempt.lease))
    assert taken == driver.world.record_plan(*key(attempt))


def ingest(driver: Driver, attempt: Attempt, count: int, failing: int) -> None:
    """The next step of an ingest: what its archive holds, or a shard of it."""
    job = driver.world.jobs[attempt.lease.job_id]
    if attempt.lease.cursor is None and attempt.position == 0 and not job.sealed:
        survey(driver, attempt, count)
        return
    hi = min(attempt.position + count, job.total)
    pack(driver, attempt, rows_for(range(attempt.position, hi), failing))


def survey(driver: Driver, attempt: Attempt, count: int) -> None:
    """An ingest learns how many items its archive holds."""
    taken = _part(driver, attempt, {"position": 0}, {}, added=count, seal=True)
    assert taken == driver.world.record_part(*key(attempt), {}, added=count, seal=True)


def pack(driver: Driver, attempt: Attempt, rows: Mapping[int, ItemState]) -> None:
    """An ingest records a shard, and the chunk with the last one."""
    position = attempt.position + len(rows)
    taken = _part(driver, attempt, {"position": position}, rows)
    assert taken == driver.world.record_part(*key(attempt), rows)
    if taken:
        attempt.position = position
        if position == driver.world.jobs[attempt.lease.job_id].total:
            driver.record(attempt, {})


def _part(
    driver: Driver,
    attempt: Attempt,
    cursor: dict[str, int],
    rows: Mapping[int, ItemState],
    *,
    added: int = 0,
    seal: bool = False,
) -> bool:
    def write(session: Session) -> None:
        record_part(
            session,
            attempt.lease,
            driver.item_rows(attempt, rows),
            cursor=cursor,
            added=added,
            seal=seal,
            lease_seconds=LEASE_SECONDS,
        )

    return driver.write(attempt, write)
