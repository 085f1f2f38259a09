"""Puts right what nobody is left to put right; any number may run at once, without a leader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass

from app.db.session import Database
from app.dispatch.deadlines import stop_overdue_jobs
from app.dispatch.drift import close_forgotten_jobs
from app.dispatch.leases import fail_poisoned, free_ended_leases, narrow_poisoned
from app.dispatch.offers import drop_old_turns
from app.dispatch.pauses import silence_paused_jobs
from app.dispatch.stops import end_stopped_jobs
from app.dispatch.trainings import stop_overspent_trainings
from app.errors import UnavailableError
from app.jobs.narrow import Narrowed
from app.log import get_logger

log = get_logger(__name__)


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
    #: Fine-tunings of tenants that have used up their training minutes.
    overspent: int = 0
    #: Bells of paused jobs that were taken back.
    silenced: int = 0
    #: Jobs that nothing would have closed any more; always 0 unless a rule was broken.
    repaired: int = 0

    def __bool__(self) -> bool:
        return any(astuple(self))


def sweep_once(
    db: Database,
    *,
    max_kills: int,
    max_training_minutes: int | None = None,
    free: Callable[[Database], int] | None = None,
) -> Swept:
    """Free ended leases, narrow or end what keeps killing its workers, end stopped jobs.

    ``max_training_minutes`` is the quota of tenants without one of their own; without it
    nobody's trainings are looked at.

    A step that meets a fault nobody knows is left for the next sweep, and the others are done all
    the same: a row that one of them chokes on must not keep every cancelled job from its end.

    Raises:
        UnavailableError: the database does not answer.
    """
    narrowed: Counter[Narrowed] = Counter()
    steps: dict[str, Callable[[], int | None]] = {
        "freed": lambda: (free or free_ended_leases)(db),
        "narrowed": lambda: narrowed.update(narrow_poisoned(db)),
        "turns": lambda: drop_old_turns(db),
        "killed": lambda: fail_poisoned(db, max_kills),
        "silenced": lambda: silence_paused_jobs(db),
        # Before the stopped jobs are looked at, of which these are some then.
        "overdue": lambda: stop_overdue_jobs(db),
        "overspent": lambda: (
            0
            if max_training_minutes is None
            else stop_overspent_trainings(db, max_training_minutes)
        ),
        "stopped": lambda: end_stopped_jobs(db),
        "repaired": lambda: close_forgotten_jobs(db),
    }
    done = {name: _survive(name, step) for name, step in steps.items()}
    return Swept(
        freed=done["freed"],
        narrowed=narrowed[Narrowed.HALVED],
        poisonous=narrowed[Narrowed.ENDED],
        killed=done["killed"],
        stopped=done["stopped"],
        overdue=done["overdue"],
        overspent=done["overspent"],
        silenced=done["silenced"],
        repaired=done["repaired"],
    )


def _survive(name: str, step: Callable[[], int | None]) -> int:
    try:
        return step() or 0
    except UnavailableError:
        raise
    except Exception:
        log.exception("sweep_step_failed", step=name)
        return 0
