"""Families: processes that die, stop or hang, at named points and at random."""

from __future__ import annotations

from tests.faults.crew import Orders
from tests.faults.families import family
from tests.faults.plan import Plan, PlannedFault
from tests.faults.trial import Trial

#: Points of an inference worker, and how often it passes each per chunk, about.
_POINTS = {
    "after_pop": 1,
    "after_claim": 1,
    "fetched": 4,
    "decoded": 4,
    "inferred": 4,
    "before_commit": 1,
    "inside_commit": 1,
    "after_commit": 1,
    "before_ack": 1,
}


def _slow(trial: Trial) -> Plan:
    """Forward takes a hundredth of a second, so that a random kill meets a chunk in hand."""
    return Plan(ledger=str(trial.stage.ledger.path), forward_seconds=0.01)


@family(quick=True)
def kill_worker(trial: Trial) -> None:
    """kill -9 of inference workers at random moments."""
    plan = _slow(trial)
    trial.muster(Orders(plan=lambda _role: plan, renamed=0.5))
    trial.load(trial.size(16_000, 1_200), trial.size(9, 3))
    trial.strike_until_done("inference", trial.size(40, 3))
    trial.wait_for_end()


def _kill_at(point: str, *, quick: bool = False) -> None:
    act = "kill_soon" if point == "inside_commit" else "kill"

    @family(f"kill_at_{point}", quick=quick, about=f"kill -9 at the point {point}")
    def run(trial: Trial) -> None:
        often = _POINTS[point]
        faults = [
            PlannedFault(point, act, trial.rng.randint(1, 6 * often))  # type: ignore[arg-type]
            for _ in range(trial.size(12, 3))
        ]
        trial.muster(Orders(plan=trial.plans("inference", faults), renamed=0.5))
        trial.load(trial.size(10_000, 1_500), 3)
        trial.wait_for_end()


for _point in _POINTS:
    _kill_at(_point, quick=_point in ("after_claim", "inside_commit", "after_commit"))


@family()
def kill_at_heartbeat(trial: Trial) -> None:
    """kill -9 as the leases are about to be extended."""
    faults = [PlannedFault("heartbeat", "kill", trial.rng.randint(1, 3)) for _ in range(8)]
    plans = trial.plans("inference", faults, forward_seconds=0.1)
    trial.muster(Orders(plan=plans, renamed=0.5))
    trial.load(6_000, 3)
    trial.wait_for_end()
