"""How often a chunk is tried: what people have to mend is waited for, and counts as no fault."""

from __future__ import annotations

import pytest

from app.errors import DarkroomError, StorageAwayError, StorageError, UnavailableError
from app.settings import load_settings
from worker.tasks.door import tries

SETTINGS = load_settings(
    DATABASE_URL="postgresql://x", DARKROOM_MAX_KILLS="5", DARKROOM_OUTAGE_SECONDS="3600"
)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (StorageError("one object fails"), 5),
        (UnavailableError("away for a moment", code="database_unavailable"), 5),
        (StorageAwayError("all of the store is away"), 65),
        (StorageAwayError("the store is full", code="storage_full"), 65),
        (UnavailableError("the database's disk is full", code="storage_full"), 65),
    ],
)
def test_an_outage_is_waited_for_and_a_fault_is_tried_a_few_times(
    error: DarkroomError, times: int
) -> None:
    assert tries(SETTINGS, error) == times
