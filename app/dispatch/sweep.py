"""Puts right what nobody is left to put right; any number may run at once, without a leader."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from app.db.session import Database
from app.dispatch.deadlines import stop_overdue_jobs
from app.dispatch.drift import close_forgotten_jobs
from app.dispatch.leases import fail_poisoned, free_ended_leases, narrow_poisoned
from app.dispatch.offers import drop_old_turns
from app.dispatch.pauses import silence_paused_jobs
from app.dispatch.stops import end_stopped_jobs
from app.jobs.narrow import Narrowed


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    #: Leases that ended without a word: so many kills.
    freed: int = 0
    #: Chunks that were cut in two.
    narrowed: int = 0
    #: Items that were recorded as ``worker_killed``.
    poisonous: int = 0
    #: Jobs that were failed for a chunk without items.
    killed: int = 0
    #: Jobs that were told to stop and still had something to end.
    stopped: int = 0
    #: Jobs whose deadline had passed.
    overdue: int = 0
    #: Bells of paused jobs that were taken back.
    silenced: int = 0
    #: Jobs that nothing would have closed any more; always 0 unless a rule was broken.
    repaired: int = 0

    def __bool__(self) -> bool:
        return any(astuple(self))


def sweep_once(db: Database, *, max_kills: int) -> Swept:
    """Free ended leases, narrow or end what keeps killing its workers, end stopped jobs.

    Raises:
        UnavailableError: the database does not answer.
    """
    freed = free_ended_leases(db)
    narrowed = narrow_poisoned(db)
    drop_old_turns(db)
    return Swept(
        freed=freed,
        narrowed=narrowed[Narrowed.HALVED],
        poisonous=narrowed[Narrowed.ENDED],
        killed=fail_poisoned(db, max_kills),
        silenced=silence_paused_jobs(db),
        # Before the stopped jobs are looked at, of which these are some then.
        overdue=stop_overdue_jobs(db),
        stopped=end_stopped_jobs(db),
        repaired=close_forgotten_jobs(db),
    )
