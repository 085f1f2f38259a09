"""Rings bells for runnable chunks: fairly, and never more than the workers' slots can take."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from celery import Celery
from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.dispatch.offers import keep_turns, read_offers
from app.dispatch.turns import take_turns
from app.queues.names import HOLDING_TASKS
from app.queues.publish import Bell, ring

_NOW = text("SELECT clock_timestamp()")
_ROUND = text("SELECT pg_try_advisory_xact_lock(hashtextextended('darkroom.relay', 0))")
# A worker whose heartbeat is older than three beats takes no bells.
_SLOTS = text(
    """
    SELECT queue, sum(slots) AS slots, count(*) AS workers
    FROM workers
    WHERE gone_at IS NULL AND last_seen_at > now() - make_interval(secs => :alive_seconds)
    GROUP BY queue
    """
)
_BUSY = text(
    """
    SELECT queue,
           count(*) FILTER (WHERE state = 'running') AS running,
           count(*) FILTER (WHERE state = 'pending'
               AND last_rung_at > now() - make_interval(secs => :again_seconds)) AS fresh,
           count(*) FILTER (WHERE state = 'pending'
               AND last_rung_at <= now() - make_interval(secs => :again_seconds)) AS stale,
           count(*) FILTER (WHERE task = ANY(:holding_tasks)) AS holding
    FROM chunks
    WHERE state = 'running' OR (state = 'pending' AND last_rung_at IS NOT NULL)
    GROUP BY queue
    """
)
_STAMP = text(
    """
    UPDATE chunks SET last_rung_at = now()
    WHERE id IN (
        SELECT id FROM chunks
        -- Another dispatcher may have rung it since it was chosen.
        WHERE id = ANY(:ids) AND state = 'pending' AND last_rung_at IS NULL
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id, tenant_id, task, queue
    """
)
_STAMP_AGAIN = text(
    """
    UPDATE chunks SET last_rung_at = now()
    WHERE id IN (
        SELECT id FROM chunks
        WHERE queue = :queue AND state = 'pending'
          AND last_rung_at <= now() - make_interval(secs => :again_seconds)
        ORDER BY last_rung_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id, tenant_id, task, queue
    """
)


@dataclass(slots=True)
class _Load:
    slots: int = 0
    running: int = 0
    fresh: int = 0
    stale: int = 0
    workers: int = 0
    #: Of those in work or on their way, chunks that hold their slot to the end.
    holding: int = 0

    @property
    def holding_left(self) -> int:
        """How many more of them may be rung: one slot of each worker is kept for other work.

        A worker with a single slot has none to keep.
        """
        return max(self.slots - self.workers, 1) - self.holding


def relay_once(
    db: Database, celery: Celery, *, ring_again_seconds: float, alive_seconds: float
) -> int:
    """Ring what may be rung now; returns how many bells.

    Chunks are stamped in one transaction and rung after its COMMIT: a bell that gets lost
    between the two is rung again once it is ``ring_again_seconds`` old.

    Raises:
        UnavailableError: the database or Redis does not answer.
    """
    with db.system() as session:
        # One round at a time: of two that counted the same idle slots, each would fill them.
        # No leader, either: the lock ends with the transaction, whoever holds it.
        if not session.scalar(_ROUND):
            return 0
        bells = [
            Bell(row.id, row.tenant_id, row.task, row.queue)
            for queue, load in _loads(session, ring_again_seconds, alive_seconds).items()
            for row in _choose(session, queue, load, ring_again_seconds)
        ]
    return ring(celery, bells) if bells else 0


def _loads(session: Session, again_seconds: float, alive_seconds: float) -> dict[str, _Load]:
    loads: dict[str, _Load] = defaultdict(_Load)
    for row in session.execute(_SLOTS, {"alive_seconds": alive_seconds}):
        loads[row.queue].slots, loads[row.queue].workers = int(row.slots), row.workers
    words = {"again_seconds": again_seconds, "holding_tasks": list(HOLDING_TASKS)}
    for row in session.execute(_BUSY, words):
        load = loads[row.queue]
        load.running, load.fresh, load.stale = row.running, row.fresh, row.stale
        load.holding = row.holding
    return {queue: load for queue, load in loads.items() if load.slots}


def _choose(
    session: Session, queue: str, load: _Load, again_seconds: float
) -> list[Row[tuple[str, str, str, str]]]:
    """Stamp and return the chunks to ring in one queue.

    Twice the slots may be in work or on their way: one chunk computing and one bell waiting
    for each. Who is next is said by :mod:`app.dispatch.turns`, and kept in the transaction that
    stamps the chunks. What holds its slot to the end never takes all slots, so that plans and
    ingests, which take turns, always find one. Old bells are rung again only where a slot is
    idle; while all are busy an unanswered bell is no sign of a lost one.
    """
    chosen: list[Row[tuple[str, str, str, str]]] = []
    if load.stale and load.running < load.slots:
        again = {"queue": queue, "again_seconds": again_seconds, "limit": 2 * load.slots}
        chosen += session.execute(_STAMP_AGAIN, again).all()
    wanted = 2 * load.slots - load.running - load.fresh - load.stale
    if wanted > 0:
        most = load.holding_left
        tenants = read_offers(session, queue, wanted, holding=most > 0)
        now = session.execute(_NOW).scalar_one()
        ids = take_turns(tenants, wanted, now, most_holding=most)
        keep_turns(session, queue, tenants)
        stamped = session.execute(_STAMP, {"ids": ids}).all() if ids else []
        # In the order of the choice, which is the fair one; UPDATE has none.
        chosen += sorted(stamped, key=lambda row: ids.index(row.id))
    return chosen
