"""Take back every lease of a database whose workers are all gone, as after a restore."""

from __future__ import annotations

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.jobs.claim import WAITS_AGAIN
from app.jobs.states import CHUNK_SOURCES, ChunkState
from app.jobs.tables import Chunk, WorkerRow


def reclaim_all_leases(session: Session) -> int:
    """Let open chunks begin again at once; returns how many were in work.

    Only for a database that no worker can reach: one that still works would be fenced. No kill
    is counted, since nobody died of these chunks. Bells were rung in a Redis that is gone.
    """
    session.execute(
        update(WorkerRow)
        .where(WorkerRow.gone_at.is_(None))
        .values(gone_at=func.now())
        .execution_options(synchronize_session=False)
    )
    freed = transition(
        session,
        Chunk,
        ChunkState.PENDING,
        sources=CHUNK_SOURCES[ChunkState.PENDING],
        where=[Chunk.state == ChunkState.RUNNING],
        values={**WAITS_AGAIN, "due_at": func.now()},
    )
    session.execute(
        update(Chunk)
        .where(Chunk.state == ChunkState.PENDING, Chunk.last_rung_at.is_not(None))
        .values(last_rung_at=None)
        .execution_options(synchronize_session=False)
    )
    return len(freed)
