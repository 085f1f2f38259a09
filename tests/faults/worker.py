"""A worker as production runs it, but for its forward pass and for the faults it is armed with.

``python -m tests.faults.worker --role inference|io``; DARKROOM_FAULTS carries a
:class:`tests.faults.plan.Plan`.
"""

from __future__ import annotations

import os
import sys

from tests.faults.acts import arm_plan
from tests.faults.plan import Plan
from worker import main as worker_main


def main() -> None:
    """Fake and arm what the plan says, then be a worker."""
    plan = Plan.from_environment(os.environ)
    if "io" not in sys.argv[1:]:
        from tests.faults.fakes import fake_decode, fake_forward

        fake_forward(plan)
        if plan.fake_decode:
            fake_decode()
    arm_plan(plan)
    worker_main.main()


if __name__ == "__main__":
    main()
