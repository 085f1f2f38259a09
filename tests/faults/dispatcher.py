"""A dispatcher as production runs it, but for the faults it is armed with."""

from __future__ import annotations

import os

from app.dispatch import run
from tests.faults.acts import arm_plan
from tests.faults.plan import Plan


def main() -> None:
    """Arm what the plan says, then be a dispatcher."""
    arm_plan(Plan.from_environment(os.environ))
    run.main()


if __name__ == "__main__":
    main()
