"""The only clock of the process. Leases and deadlines use the database's clock instead."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def monotonic_seconds() -> float:
    """Seconds on a clock that never runs backwards; only differences mean anything."""
    return time.monotonic()
