"""A relay that rings into real queue lists, and the work that it rings for."""

from __future__ import annotations

import base64
import json

import redis
from celery import Celery
from sqlalchemy import func, select, text, update

from app.db.session import Database
from app.dispatch.relay import relay_once
from app.jobs.states import ChunkState
from app.jobs.tables import Chunk, Job
from app.queues.celery import make_celery
from app.queues.names import Queue
from app.settings import Settings
from tests.jobs import add_worker, finish, look_at_chunk, make_job


class Bells:
    """A relay with the queue lists that it rings into."""

    def __init__(self, db: Database, settings: Settings, url: str) -> None:
        self.db = db
        self.redis = redis.Redis.from_url(url)
        self.celery: Celery = make_celery(settings)

    def ring(self) -> int:
        """One round."""
        return relay_once(self.db, self.celery, ring_again_seconds=5, alive_seconds=30)

    def close(self) -> None:
        """Let go of both connections."""
        self.celery.close()
        self.redis.close()

    def take(self, queue: Queue = Queue.INFERENCE) -> list[str]:
        """The chunk ids of all bells that wait in the queue, in their order; empties it."""
        messages = [json.loads(body) for body in reversed(self.redis.lrange(queue, 0, -1))]
        self.redis.delete(queue)
        return [
            json.loads(base64.b64decode(message["body"]))[1]["chunk_id"] for message in messages
        ]


def serve(bells: Bells, db: Database) -> list[str]:
    """Ring once and do the work of every bell; whose chunks they were, in the bells' order."""
    bells.ring()
    owners = []
    for chunk_id in bells.take():
        chunk = look_at_chunk(db, chunk_id)
        finish(db, chunk.tenant_id, chunk_id)
        owners.append(chunk.tenant_id)
    return owners


def add_workers(db: Database, count: int = 1, slots: int = 2, queue: Queue | None = None) -> None:
    """Workers that have just been seen; they recognise where no queue is named."""
    with db.system() as session:
        for _ in range(count):
            add_worker(session, queue or Queue.INFERENCE, slots)


def age_bells(db: Database, seconds: float = 60) -> None:
    """Let every bell be that much older."""
    with db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.last_rung_at.is_not(None))
            .values(last_rung_at=Chunk.last_rung_at - func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        )


def outstanding(db: Database) -> int:
    """Chunks that are in work or have a bell on its way."""
    with db.system() as session:
        return (
            session.scalar(
                select(func.count()).where(
                    (Chunk.state == ChunkState.RUNNING)
                    | ((Chunk.state == ChunkState.PENDING) & Chunk.last_rung_at.is_not(None))
                )
            )
            or 0
        )


def add_many_chunks(db: Database, tenant_id: str, count: int) -> str:
    """A queued job of so many chunks of 256 items, each with a column of references."""
    job_id, (first,) = make_job(db, tenant_id, 256)
    with db.system() as session:
        session.execute(
            text(
                "INSERT INTO chunks (id, tenant_id, job_id, task, queue, state, lo, hi, items,"
                " attempt, kills, progress) SELECT id || '_' || n, tenant_id, job_id, task, queue,"
                " state, n * 256, n * 256 + 256, items, 0, 0, 0"
                " FROM chunks, generate_series(1, :more) n WHERE id = :first"
            ),
            {"first": first, "more": count - 1},
        )
        session.execute(update(Job).where(Job.id == job_id).values(total=256 * count))
    return job_id
