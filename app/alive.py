"""Signs of life for whoever watches a process that serves no port: a file that stays young.

``python -m app.alive SECONDS`` ends with 0 where ``DARKROOM_ALIVE_FILE`` was touched within so
many seconds, else with 1. Stdlib only: a container runs this every few seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def show_alive(path: Path | None) -> None:
    """Touch the file after a round of real work; does nothing where none is named."""
    if path is not None:
        path.touch()


def is_alive(path: Path, within_seconds: float) -> bool:
    """Whether the file exists and was touched within so many seconds."""
    try:
        return time.time() - path.stat().st_mtime <= within_seconds
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    raise SystemExit(not is_alive(Path(os.environ["DARKROOM_ALIVE_FILE"]), float(sys.argv[1])))
