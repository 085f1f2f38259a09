"""How long a plan or an ingest may hold its slot while other work waits for one.

Both go on from a recorded cursor, so that a giant input is worked on in stints: whoever waits
comes between two of them, and the relay gives the giant its next turn like any other work.
"""

from __future__ import annotations

from sqlalchemy import text

from app.clock import monotonic_seconds
from app.db.session import Database
from app.jobs.claim import Lease
from app.queues.names import QUEUE_OF_TASK

#: Between two questions whether anyone waits.
_ASK_SECONDS = 1.0

_OTHERS_WAIT = text("SELECT others_wait(:queue, :job_id)")


class Stint:
    """The time of one attempt at a chunk; begins when it is made."""

    def __init__(self, db: Database, lease: Lease, seconds: float) -> None:
        self._db = db
        self._lease = lease
        self._seconds = seconds
        self._began = monotonic_seconds()
        self._ask_at: float | None = None

    def begin_work(self) -> None:
        """Say that the input is being read from here on; only the first call counts.

        At least twice as much time goes into work as into beginning, so that stints cost a
        giant a third of its speed at most.
        """
        if self._ask_at is not None:
            return
        now = monotonic_seconds()
        self._ask_at = now + max(self._seconds, 2 * (now - self._began))

    def is_over(self) -> bool:
        """Whether to record what is done and give the chunk back, because another job waits.

        Raises:
            UnavailableError: the database does not answer.
        """
        now = monotonic_seconds()
        if self._ask_at is None or now < self._ask_at:
            return False
        self._ask_at = now + _ASK_SECONDS
        words = {"queue": QUEUE_OF_TASK[self._lease.task], "job_id": self._lease.job_id}
        with self._db.tenant(self._lease.tenant_id) as session:
            return bool(session.scalar(_OTHERS_WAIT, words))
