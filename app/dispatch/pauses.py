"""Chunks of paused jobs whose bell was rung before: their places in the queue are freed."""

from __future__ import annotations

from sqlalchemy import select, update

from app.db.session import Database
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk, Job

#: Chunks handled in one sweep.
_BATCH = 200


def silence_paused_jobs(db: Database) -> int:
    """Take back the bells of chunks that nobody may claim while their job is paused; how many.

    A chunk that was rung holds a place in its queue until it is claimed, which these never
    are: enough of them and no other job would be rung for at all.

    Raises:
        UnavailableError: the database does not answer.
    """
    rung = (
        select(Chunk.id)
        .join(Job, Job.id == Chunk.job_id)
        .where(
            Chunk.state == ChunkState.PENDING,
            Chunk.last_rung_at.is_not(None),
            Job.state == JobState.PAUSED,
        )
        .limit(_BATCH)
        .with_for_update(skip_locked=True, of=Chunk)
        .scalar_subquery()
    )
    with db.system() as session:
        silenced = session.execute(
            update(Chunk)
            .where(Chunk.id.in_(rung))
            .values(last_rung_at=None)
            .returning(Chunk.id)
            .execution_options(synchronize_session=False)
        ).all()
    return len(silenced)
