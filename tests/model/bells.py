"""A broker that only remembers: bells lie in a list until a test answers, loses or doubles them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from celery import Celery

from app.jobs.states import ChunkTask


@dataclass(frozen=True, slots=True)
class HeardBell:
    """What a worker would read out of the queue."""

    tenant_id: str
    chunk_id: str
    task: ChunkTask


class RememberedBells:
    """Stands where Celery stands in the dispatcher."""

    def __init__(self) -> None:
        self.waiting: list[HeardBell] = []

    @property
    def celery(self) -> Celery:
        """Itself, as the dispatcher's type asks for it."""
        return cast(Celery, self)

    @contextmanager
    def producer_or_acquire(self) -> Iterator[None]:
        """No connection is needed."""
        yield

    def send_task(self, name: str, *, kwargs: dict[str, Any], queue: str, **_: object) -> None:
        """Keep the bell."""
        task = ChunkTask(name.rsplit(".", 1)[-1])
        self.waiting.append(HeardBell(kwargs["tenant_id"], kwargs["chunk_id"], task))
