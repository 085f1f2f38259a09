"""Rings bells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from app.errors import UnavailableError
from app.queues.celery import bell
from app.queues.names import celery_task_name


@dataclass(frozen=True, slots=True)
class Bell:
    """Which chunk to wake somebody for."""

    chunk_id: str
    tenant_id: str
    task: str
    queue: str


def ring(app: Celery, bells: Iterable[Bell]) -> int:
    """Publish the bells; returns how many. Called after COMMIT, so a lost one is only late.

    Raises:
        UnavailableError: Redis does not answer; the dispatcher rings again later.
    """
    rung = 0
    try:
        with app.producer_or_acquire() as producer:
            for one in bells:
                app.send_task(
                    celery_task_name(one.task),
                    kwargs=bell(one.chunk_id, one.tenant_id),
                    queue=one.queue,
                    producer=producer,
                    retry=False,
                )
                rung += 1
    except (OperationalError, RedisError) as error:
        raise UnavailableError(
            "Redis does not answer; bells are rung again", code="queue_unavailable"
        ) from error
    return rung
