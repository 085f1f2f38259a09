"""A worker whose consumer never reads its queue again, though everything else in it lives.

``python -m tests.deaf_worker --role io``: as a broker connection that is half open leaves one.
"""

from __future__ import annotations

import threading
from typing import Any

from kombu.transport.redis import Channel

from worker import main as worker_main


def _never_read(self: Channel, *_: Any, **__: Any) -> None:
    threading.Event().wait()


def main() -> None:
    """Be a worker that has lost its ear."""
    Channel._brpop_start = _never_read  # type: ignore[method-assign]
    worker_main.main()


if __name__ == "__main__":
    main()
