"""Families: inference workers that die, drain, freeze or hang, at named points and at random."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import text

from app.jobs.states import JobState
from tests.faults.crew import Orders, Role
from tests.faults.families import family
from tests.faults.images import colour_of
from tests.faults.oracle import answer_of
from tests.faults.plan import Plan, PlannedFault
from tests.faults.stage import CHUNK_ITEMS, LEASE_SECONDS
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
#: Beyond the lease, and time for the sweeper and another worker to take the chunk.
_FROZEN_SECONDS = LEASE_SECONDS + 1.5
#: Settings with which a worker that hangs ends itself soon.
IMPATIENT: Mapping[Role, Mapping[str, str]] = {"inference": {"DARKROOM_STALL_SECONDS": "4"}}
#: PostgreSQL ends a transaction that stands idle for so long (``app.db.session``).
_IDLE_SECONDS = 10.0


def slow(trial: Trial, seconds: float = 0.01) -> Orders:
    """Forward takes a hundredth of a second, so that a fault at random meets a chunk in hand."""
    plan = Plan(ledger=str(trial.stage.ledger.path), forward_seconds=seconds)
    return Orders(plan=lambda _role: plan, renamed=0.5)


def spare_one(trial: Trial, orders: Orders) -> None:
    """A third worker that no fault strikes: what the others had in hand, somebody can take."""
    orders.spared = Plan(forward_seconds=0.02)
    trial.muster(orders, inference=3)


@family(quick=True)
def kill_worker(trial: Trial) -> None:
    """kill -9 of inference workers at random moments."""
    spare_one(trial, slow(trial))
    trial.load(trial.size(24_000, 1_000), trial.size(9, 3))
    trial.strike_until_done("inference", trial.size(40, 3), between=(0.2, 0.8))
    trial.wait_for_end()


def _kill_at(point: str, *, quick: bool = False) -> None:
    act = "kill_soon" if point == "inside_commit" else "kill"

    @family(f"kill_at_{point}", quick=quick, about=f"kill -9 at the point {point}")
    def run(trial: Trial) -> None:
        often = _POINTS[point]
        faults = [
            # Of few chunks a worker may get no third one, where the machine has more to do.
            PlannedFault(point, act, trial.rng.randint(1, trial.size(6, 2) * often))  # type: ignore[arg-type]
            for _ in range(trial.size(12, 2))
        ]
        plans = trial.plans("inference", faults, forward_seconds=0.005)
        spare_one(trial, Orders(plan=plans, renamed=0.5))
        trial.load(trial.size(10_000, 1_000), 3)
        trial.wait_for_end()


for _point in _POINTS:
    _kill_at(_point, quick=_point in ("after_claim", "inside_commit"))


@family()
def kill_at_heartbeat(trial: Trial) -> None:
    """kill -9 as the leases are about to be extended."""
    faults = [PlannedFault("heartbeat", "kill", trial.rng.randint(1, 3)) for _ in range(8)]
    plans = trial.plans("inference", faults, forward_seconds=0.05)
    spare_one(trial, Orders(plan=plans, renamed=0.5))
    trial.load(8_000, 3)
    trial.wait_for_end()


@family()
def kill_decode_child(trial: Trial) -> None:
    """kill -9 of decode children: only the run in hand is tried again, no image fails."""
    trial.muster(slow(trial))
    trial.load(8_000, 3)
    wanted = 30
    while trial.made["kill of a decode child"] < wanted and not trial.is_over():
        trial.pause(0.02, 0.2)
        children = [
            pid for worker in trial.stage.crew.living("inference") for pid in _children(worker.pid)
        ]
        if children:
            trial.kill_pid(trial.rng.choice(children), "kill of a decode child")
    trial.wait_for_end()


def _children(pid: int) -> list[int]:
    """Processes that any thread of ``pid`` has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:
            continue
    return found


@family(quick=True)
def drain_worker(trial: Trial) -> None:
    """SIGTERM: the finished part is recorded, the lease is freed, and nobody counts a kill."""
    trial.muster(slow(trial))
    trial.load(trial.size(8_000, 1_000), 3)
    trial.strike_until_done(
        "inference", trial.size(16, 2), number=signal.SIGTERM, between=(0.2, 0.8)
    )
    trial.wait_for_end()
    with trial.stage.db.system() as session:
        kills = session.scalar(
            text("SELECT coalesce(sum(kills), 0) FROM chunks WHERE job_id = ANY(:ids)"),
            {"ids": trial.job_ids()},
        )
    trial.require(not kills, f"{kills} kills were counted, and every worker was asked")


@family()
def freeze_worker(trial: Trial) -> None:
    """SIGSTOP beyond the lease, then SIGCONT: what comes late is refused."""
    trial.muster(slow(trial, 0.1))
    trial.load(16_000, 3)
    for _ in range(8):
        if trial.is_over():
            break
        trial.pause(0.1, 0.4)
        frozen = trial.stage.crew.strike("inference", signal.SIGSTOP)
        if frozen is not None:
            threading.Event().wait(_FROZEN_SECONDS)
            frozen.send_signal(signal.SIGCONT)
    trial.wait_for_end()


@family()
def freeze_in_transaction(trial: Trial) -> None:
    """SIGSTOP between the writes of a recording and its COMMIT, while it holds the job's row."""
    faults = [PlannedFault("before_commit", "stop", nth) for nth in (2, 3)]
    trial.muster(Orders(plan=trial.plans("inference", faults)))
    trial.load(4_000, 2)
    # Until then the job's row stays locked; others wait, and the database ends it.
    threading.Event().wait(_IDLE_SECONDS + 1)
    for worker in trial.stage.crew.living("inference"):
        worker.send_signal(signal.SIGCONT)
    trial.wait_for_end()


@family()
def lose_commit_answer(trial: Trial) -> None:
    """The COMMIT of a recording succeeds and its answer is lost: done again, recorded once."""
    faults = [PlannedFault("inside_commit", "lose_answer", nth) for nth in range(2, 40, 3)]
    left = Plan(faults=tuple(faults), ledger=str(trial.stage.ledger.path))
    trial.muster(Orders(plan=lambda _role: left))
    trial.load(8_000, 3)
    trial.wait_for_end()


@family()
def raise_anywhere(trial: Trial) -> None:
    """An error that nobody expects, at points between the claim and the COMMIT."""
    ledger = str(trial.stage.ledger.path)
    faults = tuple(
        PlannedFault(point, "raise", trial.rng.randint(2, 20 * _POINTS[point]))
        for point in ("fetched", "decoded", "inferred", "before_commit")
    )
    trial.muster(Orders(plan=lambda _role: Plan(faults=faults, ledger=ledger)))
    trial.load(6_000, 3)
    trial.wait_for_end()


@family()
def kill_at_close(trial: Trial) -> None:
    """kill -9 as a job is about to be closed, in the transaction of its last recording."""
    faults = [PlannedFault("close", "kill", trial.rng.randint(2, 5)) for _ in range(8)]
    spare_one(trial, Orders(plan=trial.plans("inference", faults), renamed=0.5))
    trial.load(6_000, 40)
    trial.wait_for_end()


@family(quick=True)
def hang_in_forward(trial: Trial) -> None:
    """A forward pass that never ends: the worker sees that nothing moves, and ends itself."""
    faults = [PlannedFault("forward", "hang", nth) for nth in (5, 9, 7, 12)[: trial.size(4, 1)]]
    orders = Orders(plan=trial.plans("inference", faults), variables=IMPATIENT)
    trial.muster(orders)
    trial.load(trial.size(6_000, 600), 3)
    trial.wait_for_end()


@family(quick=True)
def poison_item(trial: Trial) -> None:
    """One image ends every worker that recognises it; it alone fails."""
    _recognise_poison(trial, trial.size(10_000, 300))


@family()
def kill_at_narrow(trial: Trial) -> None:
    """kill -9 of the dispatcher as it cuts the chunk that holds such an image in two."""
    _recognise_poison(
        trial, 2_000, [PlannedFault("narrow", "kill", nth) for nth in (1, 1, 2, 1, 2)]
    )


def _recognise_poison(trial: Trial, items: int, faults: Sequence[PlannedFault] = ()) -> None:
    pictures = trial.pictures(items)
    bad = trial.rng.choice(pictures)
    poisoned = Plan(ledger=str(trial.stage.ledger.path), poison=f"{colour_of(bad.data):06x}")
    dispatchers = trial.plans("dispatcher", faults)
    orders = Orders(plan=lambda role: dispatchers(role) if role == "dispatcher" else poisoned)
    trial.muster(orders)
    ends = [
        (one.custom_id, frozenset({"!worker_killed" if one is bad else answer_of(one.data)}))
        for one in pictures
    ]
    trial.submit(pictures, items=ends, ends=frozenset({JobState.PARTIALLY_SUCCEEDED}))
    trial.wait_for_end()
    kills = sum(fault.point == "poison" for fault in trial.happened())
    most = 2 + math.ceil(math.log2(CHUNK_ITEMS))
    trial.require(0 < kills <= most, f"{kills} kills; {most} may find one of {CHUNK_ITEMS} items")
