"""What tests of retries share."""

from __future__ import annotations

from sqlalchemy import select

from app.db.session import Database
from app.jobs.states import ChunkTask
from app.jobs.tables import Chunk


def predict_chunks(db: Database, job_id: str) -> list[str]:
    """The chunks that hold the job's items, in their order."""
    with db.system() as session:
        return list(
            session.scalars(
                select(Chunk.id)
                .where(Chunk.job_id == job_id, Chunk.task == ChunkTask.PREDICT)
                .order_by(Chunk.lo)
            )
        )
