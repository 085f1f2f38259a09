"""Runs the state machine: a few examples as a test, thousands as `make fuzz`.

As a command: ``python -m tests.model.play [examples] [seed]``.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as budget
from hypothesis.stateful import run_state_machine_as_test

from app.clock import monotonic_seconds
from app.stack.postgres import LocalPostgres
from tests.local_parts import scratch_folder
from tests.model.clock import TimedDatabase
from tests.model.machine import JobMachine

STEPS = 40


def play(timed: TimedDatabase, *, examples: int, number: int | None, shrink: bool = True) -> None:
    """Play so many examples, the same ones for the same ``number``.

    Raises:
        AssertionError: tables and model disagree; the message ends with the shortest way there.
    """
    machine = type("JobMachineHere", (JobMachine,), {"timed": timed})
    if number is not None:
        machine = seed(number)(machine)
    phases = [Phase.explicit, Phase.generate]
    run_state_machine_as_test(
        machine,
        settings=budget(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[*phases, Phase.shrink] if shrink else phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def main(words: Sequence[str]) -> int:
    """Play on a PostgreSQL of its own and end with one line of figures."""
    examples = int(words[0]) if words else 2000
    number = int(words[1]) if len(words) > 1 else random.SystemRandom().randrange(2**32)
    print(f"up to {STEPS} steps each; SEED={number} repeats them")  # noqa: T201  (it speaks)
    began, failures = monotonic_seconds(), 0
    with scratch_folder() as folder, LocalPostgres(folder, fast=True) as postgres:
        timed = TimedDatabase(postgres, "timed")
        try:
            play(timed, examples=examples, number=number)
        except Exception:
            traceback.print_exc()
            failures = 1
        finally:
            timed.close()
    print(  # noqa: T201
        f"fuzz examples={JobMachine.examples} steps={JobMachine.steps} failures={failures} "
        f"seed={number} seconds={monotonic_seconds() - began:.0f}"
    )
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
