"""Compares the tables with the model, and holds what must be true of any tables at all."""

from __future__ import annotations

from typing import Any

from app.jobs.states import (
    CHUNK_SOURCES,
    JOB_SOURCES,
    TERMINAL_JOB_STATES,
    ChunkState,
    ItemState,
    JobState,
)
from tests.model.clock import TimedDatabase
from tests.model.world import World

_JOBS = """
    SELECT id, state, total, succeeded, failed, skipped, cancelled, expired,
           sealed_at IS NOT NULL, seq, stop_reason, ended_at IS NOT NULL, retry_of
    FROM jobs"""
_CHUNKS = """
    SELECT id, state, lo, hi, attempt, kills, faults, worker_id,
           extract(epoch FROM lease_until)::float
    FROM chunks"""
_ITEMS = "SELECT job_id, ordinal, custom_id, state, attempt FROM items"
_MOVES = "SELECT kind, id, source, target FROM fake.moves ORDER BY number"
# Each query lists the rows that break a rule, whatever the model thinks.
_BREACHES = {
    "counters that are not the number of their items": """
        SELECT j.id FROM jobs j
        LEFT JOIN LATERAL (
            SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
                   count(*) FILTER (WHERE state = 'failed') AS failed,
                   count(*) FILTER (WHERE state = 'skipped') AS skipped
            FROM items WHERE job_id = j.id) i ON true
        WHERE (j.succeeded, j.failed, j.skipped) IS DISTINCT FROM
              (i.succeeded, i.failed, i.skipped)""",
    "closed jobs whose counts do not sum to their total": """
        SELECT id FROM jobs WHERE ended_at IS NOT NULL
        AND (succeeded + failed + skipped + cancelled + expired <> total OR sealed_at IS NULL)""",
    "closed jobs with an open chunk": """
        SELECT j.id FROM jobs j JOIN chunks c ON c.job_id = j.id
        WHERE j.ended_at IS NOT NULL AND c.state IN ('pending', 'running')""",
    "leases without a running chunk, or the reverse": """
        SELECT id FROM chunks WHERE (state = 'running') <> (lease_until IS NOT NULL)
        OR (state = 'running') <> (worker_id IS NOT NULL)""",
    "chunks of a job that leave a gap or overlap": """
        SELECT job_id FROM (
            SELECT job_id, first_item, hi,
                   lag(hi, 1, 0::bigint) OVER (PARTITION BY job_id ORDER BY first_item) AS before
            FROM chunks WHERE task = 'predict') c
        WHERE first_item <> before
        UNION ALL
        SELECT j.id FROM jobs j WHERE j.kind = 'predict' AND j.total <>
            (SELECT coalesce(max(hi), 0) FROM chunks WHERE job_id = j.id)""",
    "items that no chunk of their job has recorded": """
        SELECT i.job_id FROM items i JOIN jobs j ON j.id = i.job_id
        WHERE j.kind = 'predict' AND NOT EXISTS (
            SELECT FROM chunks c WHERE c.job_id = i.job_id AND i.attempt <= c.attempt
            AND i.ordinal >= c.first_item AND i.ordinal < c.hi
            AND (i.ordinal < c.lo OR c.state NOT IN ('pending', 'running')))""",
    "jobs whose events have a hole": """
        SELECT j.id FROM jobs j
        LEFT JOIN LATERAL (
            SELECT count(*) AS found, coalesce(max(number), 0) AS last
            FROM events WHERE job_id = j.id) e ON true
        WHERE (e.found, e.last) IS DISTINCT FROM (j.event_number, j.event_number)""",
    "jobs whose last event is not their one and only end": """
        SELECT j.id FROM jobs j
        LEFT JOIN LATERAL (
            SELECT array_agg(number) AS ends FROM events WHERE job_id = j.id AND type IN (
                'job.succeeded', 'job.partially_succeeded', 'job.failed', 'job.expired',
                'job.cancelled')) e ON true
        WHERE e.ends IS DISTINCT FROM
              CASE WHEN j.ended_at IS NULL THEN NULL ELSE ARRAY[j.event_number::bigint] END
        UNION ALL
        SELECT j.id FROM jobs j JOIN events e ON e.job_id = j.id AND e.number = j.event_number
        WHERE j.ended_at IS NOT NULL AND e.type <> 'job.' || j.state""",
    "rows of another tenant than that of their job": """
        SELECT j.id FROM jobs j JOIN items i ON i.job_id = j.id WHERE i.tenant_id <> j.tenant_id
        UNION ALL
        SELECT j.id FROM jobs j JOIN chunks c ON c.job_id = j.id WHERE c.tenant_id <> j.tenant_id
        """,
}
_ALL_BREACHES = "\nUNION ALL\n".join(
    f"SELECT '{name}' AS rule, * FROM ({query}) b" for name, query in _BREACHES.items()
)


def check(timed: TimedDatabase, world: World) -> None:
    """Every row is what the model says, and no rule is broken."""
    breaches = timed.read(_ALL_BREACHES)
    assert not breaches, breaches
    _check_moves(timed.read(_MOVES))
    assert {row[0]: row[1:] for row in timed.read(_JOBS)} == _expected_jobs(world)
    assert {row[0]: row[1:] for row in timed.read(_CHUNKS)} == _expected_chunks(world)
    items = {(job_id, ordinal): found for job_id, ordinal, *found in timed.read(_ITEMS)}
    assert items == {
        (job.id, ordinal): [job.name_of(ordinal), *found]
        for job in world.jobs.values()
        for ordinal, found in job.rows.items()
    }


def _check_moves(moves: list[tuple[Any, ...]]) -> None:
    """Every change of a state was an allowed one; a job ended once, and nothing left its end."""
    ended: set[str] = set()
    for kind, name, source, target in moves:
        if kind == "jobs":
            allowed = source in JOB_SOURCES[JobState(target)]
        else:
            allowed = source in CHUNK_SOURCES[ChunkState(target)]
        assert allowed, (kind, name, source, target)
        if kind == "jobs" and target in TERMINAL_JOB_STATES:
            assert name not in ended, f"{name} was closed twice"
            ended.add(name)


def _expected_jobs(world: World) -> dict[str, tuple[Any, ...]]:
    return {
        job.id: (
            job.state,
            job.total,
            job.items(ItemState.SUCCEEDED),
            job.items(ItemState.FAILED),
            0,
            job.cancelled,
            job.expired,
            job.sealed,
            job.seq,
            job.reason,
            job.ended,
            job.retry_of,
        )
        for job in world.jobs.values()
    }


def _expected_chunks(world: World) -> dict[str, tuple[Any, ...]]:
    return {
        chunk.id: (
            chunk.state,
            chunk.lo,
            chunk.hi,
            chunk.attempt,
            chunk.kills,
            chunk.faults,
            chunk.worker_id,
            chunk.lease_until,
        )
        for chunk in world.chunks.values()
    }
