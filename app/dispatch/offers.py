"""The turns of one queue, read from PostgreSQL with the chunks that wait, and written back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.turns import QUANTUM, STEP, JobTurn, TenantTurn, Turn, Waiting, cost_of
from app.queues.names import HOLDING_TASKS, QUEUE_OF_TASK

#: Chunks of a job that are read at once: with its offer, and when these were not enough.
_HEAD_CHUNKS, _MORE_CHUNKS = 4, 64
#: A full chunk of a job that does not say how large that is.
_FULL_CHUNK_ITEMS = 256
#: Before everyone who has had a turn.
_NEVER = datetime.min.replace(tzinfo=UTC)

# One row a tenant that has something to ring, in the order of their turns, with the head of
# its own round of jobs. A tenant costs one step through an index to find, and its jobs are
# looked into in their order until enough of them offer something: neither depends on how many
# chunks wait. A turn serves at least one chunk, so more than ``wanted`` tenants, jobs of a
# tenant or chunks of a job are not needed; only where exports among them are passed over, what
# stands behind them waits for the next round.
_OFFERS = text(
    """
    WITH RECURSIVE owners AS (
        (SELECT tenant_id FROM jobs
         WHERE state IN ('validating', 'queued', 'running', 'finalizing')
         ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant_id FROM jobs
                WHERE state IN ('validating', 'queued', 'running', 'finalizing')
                  AND tenant_id > owners.tenant_id
                ORDER BY tenant_id LIMIT 1)
        FROM owners
        WHERE owners.tenant_id IS NOT NULL
    ), tenants AS (
        SELECT owners.tenant_id, t.since, t.deficit
        FROM owners
        LEFT JOIN turns t
            ON t.queue = :queue AND t.tenant_id = owners.tenant_id AND t.job_id = ''
        WHERE owners.tenant_id IS NOT NULL
        ORDER BY t.since NULLS FIRST, owners.tenant_id
    )
    SELECT tenants.tenant_id, tenants.since, tenants.deficit, offered.jobs
    FROM tenants
    CROSS JOIN LATERAL (
        SELECT jsonb_agg(to_jsonb(job)) AS jobs
        FROM (
            SELECT ranked.*, waiting.chunks
            FROM (
                SELECT j.id, j.priority, j.chunk_items, j.state, t.deficit, arrived.since
                FROM jobs j
                LEFT JOIN LATERAL (
                    -- By its whole key: without statistics the planner takes a tenant for one
                    -- row, and would go through all of its turns for each of its jobs.
                    SELECT since, deficit
                    FROM turns
                    WHERE queue = :queue AND tenant_id = j.tenant_id AND job_id = j.id
                    LIMIT 1
                ) t ON true
                CROSS JOIN LATERAL (
                    -- A job that has had no turn yet goes before those that have.
                    SELECT coalesce(t.since, coalesce(j.queued_at, j.created_at) - :step) AS since
                ) arrived
                WHERE j.tenant_id = tenants.tenant_id
                  AND j.state IN ('validating', 'queued', 'running', 'finalizing')
                  AND (j.state <> 'validating' OR :plans)
                ORDER BY arrived.since - j.priority * CAST(:step AS interval), j.id
                -- Keeps the order of the rows, so that LIMIT ends the search early.
                OFFSET 0
            ) ranked
            CROSS JOIN LATERAL (
                SELECT jsonb_agg(jsonb_build_array(c.id, c.lo, c.hi, c.task)) AS chunks
                FROM (
                    SELECT id, lo, hi, task
                    FROM chunks
                    WHERE job_id = ranked.id AND state = 'pending' AND queue = :queue
                      AND due_at <= now() AND (task = 'plan') = (ranked.state = 'validating')
                      AND last_rung_at IS NULL AND task <> ALL(:left_out)
                    ORDER BY lo
                    LIMIT :head_chunks
                ) c
            ) waiting
            WHERE waiting.chunks IS NOT NULL
            LIMIT :wanted
        ) job
    ) offered
    WHERE offered.jobs IS NOT NULL
    LIMIT :wanted
    """
)
_MORE = text(
    """
    SELECT id, lo, hi, task
    FROM chunks
    WHERE job_id = :job_id AND state = 'pending' AND queue = :queue
      AND due_at <= now() AND task <> 'plan' AND last_rung_at IS NULL AND lo > :after
    ORDER BY lo
    LIMIT :limit
    """
)
_KEEP = text(
    """
    INSERT INTO turns (queue, tenant_id, job_id, since, deficit)
    SELECT :queue, * FROM unnest(
        CAST(:tenants AS text[]), CAST(:jobs AS text[]),
        CAST(:since AS timestamptz[]), CAST(:deficits AS int[]))
    ON CONFLICT (queue, tenant_id, job_id)
    DO UPDATE SET since = excluded.since, deficit = excluded.deficit
    """
)
# Of jobs that wait the turn is kept, however long ago it was.
_DROP = text(
    """
    DELETE FROM turns t
    WHERE t.since < now() - CAST(:step AS interval)
      AND t.job_id <> ''
      AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = t.job_id AND j.ended_at IS NULL)
    """
)


def read_offers(
    session: Session, queue: str, wanted: int, *, holding: bool = True
) -> list[TenantTurn]:
    """The tenants that have something to ring in a queue, with their next jobs and chunks.

    Without ``holding`` nothing of those tasks that hold their slot to the end.
    """
    words = {
        "queue": queue,
        "plans": queue == QUEUE_OF_TASK["plan"],
        "wanted": wanted,
        "head_chunks": _HEAD_CHUNKS,
        "step": STEP,
        "left_out": [] if holding else list(HOLDING_TASKS),
    }
    return [
        TenantTurn(
            row.tenant_id,
            row.since or _NEVER,
            QUANTUM if row.deficit is None else row.deficit,
            jobs=[_job_turn(session, queue, job) for job in row.jobs],
        )
        for row in session.execute(_OFFERS, words)
    ]


def keep_turns(session: Session, queue: str, tenants: list[TenantTurn]) -> None:
    """Write back the turns that moved on."""
    moved: list[tuple[str, str, Turn]] = [
        (tenant.id, "" if turn is tenant else turn.id, turn)
        for tenant in tenants
        for turn in (tenant, *tenant.jobs)
        if turn.changed
    ]
    if not moved:
        return
    words = {
        "queue": queue,
        "tenants": [tenant_id for tenant_id, _, _ in moved],
        "jobs": [job_id for _, job_id, _ in moved],
        "since": [turn.since for _, _, turn in moved],
        "deficits": [turn.deficit for _, _, turn in moved],
    }
    session.execute(_KEEP, words)


def drop_old_turns(db: Database) -> None:
    """Forget the turns of jobs that have ended.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        session.execute(_DROP, {"step": STEP})


def _job_turn(session: Session, queue: str, job: dict[str, Any]) -> JobTurn:
    return JobTurn(
        job["id"],
        datetime.fromisoformat(job["since"]),
        QUANTUM if job["deficit"] is None else job["deficit"],
        chunks=_chunks(session, queue, job),
        priority=job["priority"],
    )


def _chunks(session: Session, queue: str, job: dict[str, Any]) -> Iterator[Waiting]:
    """The waiting chunks of a job; further ones are read when they are needed."""
    full = job["chunk_items"] or _FULL_CHUNK_ITEMS
    found, limit = job["chunks"], _HEAD_CHUNKS
    while found:
        for chunk_id, lo, hi, task in found:
            yield Waiting(chunk_id, cost_of(hi - lo, full), task in HOLDING_TASKS)
        if len(found) < limit:
            return
        limit = _MORE_CHUNKS
        words = {"job_id": job["id"], "queue": queue, "after": lo, "limit": limit}
        found = session.execute(_MORE, words).all()
