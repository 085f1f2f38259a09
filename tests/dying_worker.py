"""A worker that ends itself at a named point: ``python -m tests.dying_worker --role …``.

``DARKROOM_TEST_END_AT`` says where and how, as ``checkpoint_stored:3:SIGKILL``: by this signal,
the third time the point is reached.
"""

from __future__ import annotations

import os
import signal
import threading

from app import points
from worker import main as worker_main


def _arm(where: str) -> None:
    name, times, ending = where.split(":")
    assert name in points.POINTS
    left, lock = [int(times)], threading.Lock()

    def act(point: str) -> None:
        if point != name:
            return
        with lock:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.Signals[ending])

    points.arm(act)


def main() -> None:
    """Arm what the environment says, then be a worker."""
    _arm(os.environ["DARKROOM_TEST_END_AT"])
    worker_main.main()


if __name__ == "__main__":
    main()
