"""Two transactions that meet: the order is forced by PostgreSQL's own locks, never by luck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.claim import Lease, claim_chunk
from app.jobs.states import ChunkTask, JobState
from app.jobs.tables import Job
from tests.jobs import record_all
from tests.service import wait_until

T = TypeVar("T")

_WAITING = text(
    """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
    """
)


class Second(Generic[T]):
    """What the other side of a race does, in a thread of its own."""

    def __init__(self, db: Database, future: Future[T]) -> None:
        self._db = db
        self._future = future

    def waits(self) -> None:
        """Return once it waits for a lock that somebody holds; it must not get by."""

        def blocked() -> bool:
            assert not self._future.done(), f"it did not wait: {self._future}"
            with self._db.system() as session:
                return bool(session.scalar(_WAITING))

        wait_until(blocked, "the other transaction waits for a lock")

    def passes(self) -> T:
        """Its answer, which must not need the first transaction to end."""
        return self._future.result(timeout=20)

    def answer(self) -> T | BaseException:
        """What it returned or raised, after the first transaction has ended."""
        error = self._future.exception(timeout=20)
        return self._future.result() if error is None else error


#: Starts the other side.
Race = Callable[[Callable[[], Any]], Second[Any]]


@contextmanager
def racing(db: Database) -> Iterator[Race]:
    """Starts the other side of a race; what it left undone ends with the block."""
    with ThreadPoolExecutor(2) as threads:
        yield lambda act: Second(db, threads.submit(act))


def record(db: Database, lease: Lease) -> str:
    """A worker records all items of its lease."""
    record_all(db, lease)
    return "recorded"


def tell(
    db: Database, tenant_id: str, job_id: str, what: Callable[[Session, str, str], Job]
) -> JobState:
    """The job's state after its client has told it something."""
    with db.tenant(tenant_id) as session:
        return JobState(what(session, tenant_id, job_id).state)


def take(session: Session, tenant_id: str, chunk_id: str) -> Lease | None:
    """A claim inside a transaction that the caller keeps open."""
    return claim_chunk(
        session, tenant_id, chunk_id, task=ChunkTask.PREDICT, worker_id="wrk_a", lease_seconds=30
    )
