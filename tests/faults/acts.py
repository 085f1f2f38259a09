"""Makes the faults of a plan happen in this process, at the points that app.points names."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import psycopg

from app.points import POINTS, arm
from tests.faults.plan import Plan, PlannedFault

#: Beside the service's own points: the fake forward begins; the API is about to answer.
TEST_POINTS = ("forward", "before_reply")
#: A COMMIT with fsync takes about this long, so a kill within it meets one on its way.
_SOON_SECONDS = 0.003

_local = threading.local()


def arm_plan(plan: Plan) -> None:
    """Arm this process with the plan's faults; inert where it has none."""
    unknown = {fault.point for fault in plan.faults} - {*POINTS, *TEST_POINTS}
    if unknown:
        raise ValueError(f"no such point: {', '.join(sorted(unknown))}")
    if not plan.faults:
        return
    if any(fault.act == "lose_answer" for fault in plan.faults):
        _lose_answers()
    arm(_Acts(plan).at)


def note(plan: Plan, point: str, act: str, *, pid: int | None = None) -> None:
    """Write into the ledger that a fault is about to happen; it outlives this process."""
    if plan.ledger:
        handle = os.open(plan.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, f"{time.time()} {pid or os.getpid()} {point} {act}\n".encode())
        os.close(handle)


class _Acts:
    """Counts the visits of each point and acts at the planned one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._visits: Counter[str] = Counter()
        self._lock = threading.Lock()

    def at(self, point: str) -> None:
        with self._lock:
            self._visits[point] += 1
            now = [
                fault
                for fault in self._plan.faults
                if fault.point == point and fault.nth == self._visits[point]
            ]
        for fault in now:
            note(self._plan, point, fault.act)
            _act(fault)


def _act(fault: PlannedFault) -> None:
    match fault.act:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_soon":
            threading.Thread(target=_kill_soon, daemon=True).start()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            threading.Event().wait()
        case "raise":
            raise RuntimeError(f"a fault at {fault.point}")
        case "lose_answer":
            _local.lose_answer = True


def _kill_soon() -> None:
    # Busy, as a sleep of so little lasts as long as the COMMIT.
    until = time.perf_counter() + _SOON_SECONDS * (os.getpid() % 16) / 16
    while time.perf_counter() < until:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _lose_answers() -> None:
    """Let a COMMIT of this thread succeed without its answer, where that was asked for."""
    commit = psycopg.Connection.commit

    def commit_unheard(self: psycopg.Connection[Any]) -> None:
        commit(self)
        if getattr(_local, "lose_answer", False):
            _local.lose_answer = False
            self.close()
            raise psycopg.OperationalError("the connection was lost after COMMIT was sent")

    psycopg.Connection.commit = commit_unheard  # type: ignore[method-assign]
