"""Puts right what nobody is left to put right; any number may run at once, without a leader."""

from __future__ import annotations

from dataclasses import dataclass

from app.db.session import Database
from app.dispatch.drift import close_forgotten_jobs
from app.dispatch.leases import fail_poisoned, free_ended_leases
from app.dispatch.stops import end_stopped_jobs


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    freed: int = 0
    killed: int = 0
    stopped: int = 0
    #: Jobs that nothing would have closed any more; always 0 unless a rule was broken.
    repaired: int = 0

    def __bool__(self) -> bool:
        return bool(self.freed or self.killed or self.stopped or self.repaired)


def sweep_once(db: Database, *, max_kills: int) -> Swept:
    """Free ended leases, end chunks that keep killing their workers, end stopped jobs.

    Raises:
        UnavailableError: the database does not answer.
    """
    return Swept(
        freed=free_ended_leases(db),
        killed=fail_poisoned(db, max_kills),
        stopped=end_stopped_jobs(db),
        repaired=close_forgotten_jobs(db),
    )
