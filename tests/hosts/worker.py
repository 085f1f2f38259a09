"""A worker that waits with its first chunks recognised until it is told to record them.

``python -m tests.hosts.worker --role inference``. Told through files in DARKROOM_SIGNS, since the
network is what the test takes away. Forward is faked as in tests.faults.worker.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.claim import Lease
from app.jobs.item_rows import ItemRow
from app.jobs.record import record_chunk
from app.points import arm
from tests.faults.fakes import fake_forward
from tests.faults.plan import Plan
from worker import main as worker_main
from worker.tasks import predict


def main() -> None:
    signs = Path(os.environ["DARKROOM_SIGNS"])

    def wait(point: str) -> None:
        if point == "inferred" and not (signs / "go-on").exists():
            (signs / "recognised").touch()
            while not (signs / "go-on").exists():
                threading.Event().wait(0.05)

    def record(session: Session, lease: Lease, rows: Sequence[ItemRow], **more: Any) -> None:
        # Nothing that the database could tell it can keep it from sending this record any more.
        (signs / "recording").touch()
        record_chunk(session, lease, rows, **more)

    fake_forward(Plan())
    setattr(predict, record_chunk.__name__, record)
    arm(wait)
    worker_main.main()


if __name__ == "__main__":
    main()
