"""What a trial comes to: the line of the table, once its load and its faults are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.queues.names import Queue
from tests.faults.oracle import Verdict, judge, recoveries
from tests.faults.stage import LEASE_SECONDS

if TYPE_CHECKING:
    from tests.faults.trial import Trial

#: Work taken up again later than this after its worker's death is a failure of the family,
RECOVERY_SECONDS = LEASE_SECONDS + 5.0
#: but for a quick run, which shares its machine with other tests.
QUICK_RECOVERY_SECONDS = 20.0
#: The same after a FLUSHALL, or when Valkey is back.
FLUSH_RECOVERY_SECONDS = 10.0
_DEADLY = frozenset({"kill", "kill_soon", "exit", "sigkill"})


@dataclass(slots=True)
class Row:
    """A line of the table."""

    family: str
    times: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    recovery_seconds: float | None = None
    seconds: float = 0.0
    complaint: str = ""

    @property
    def has_passed(self) -> bool:
        """Whether the promise was kept and work was taken up again in time."""
        return self.verdict.is_kept and not self.complaint


def conclude(trial: Trial, row: Row) -> None:
    """Ask the oracle, Valkey and the ledger."""
    happened = trial.happened()
    row.complaint = "; ".join(filter(None, [row.complaint, *trial.complaints]))
    row.times = len(happened) + trial.made.total()
    promised = trial.stage.journal.job_ids(trial.family)
    row.verdict = judge(trial.stage.db, trial.accepted)
    unknown = set(promised.values()) ^ {job.job_id for job in trial.accepted}
    if unknown:
        row.verdict.breaches.append(f"journal and trial differ over {sorted(unknown)}")
    if not _queues_run_empty(trial):
        row.verdict.breaches.append("bells are left in Valkey and nobody takes them")
    deaths = {fault.pid: fault.at for fault in happened if fault.act in _DEADLY}
    seconds = recoveries(trial.stage.db, deaths) + trial.recovery_seconds
    if seconds:
        row.recovery_seconds = max(seconds)
        limit = QUICK_RECOVERY_SECONDS if trial.quick else trial.recovery_limit
        if row.recovery_seconds > limit:
            row.complaint += f" recovered after {row.recovery_seconds:.1f} s"


def _queues_run_empty(trial: Trial) -> bool:
    def empty() -> bool:
        with trial.stage.redis() as redis:
            return not any(redis.llen(queue.value) for queue in Queue)

    try:
        trial.wait(empty, "queues are empty", 20)
    except TimeoutError:
        return False
    return True
