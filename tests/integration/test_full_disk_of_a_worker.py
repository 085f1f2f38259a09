"""A worker whose own disk is full: its chunks wait for room, and no item is blamed."""

from __future__ import annotations

import errno
import os

from app.db.session import Database
from app.errors import UnavailableError
from app.jobs.states import ChunkState, JobState
from tests.doors import do_it, failing, ring
from tests.jobs import assert_closed, chunk_ids, look_at_chunk, make_due, make_job
from worker.process import WorkerProcess

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/weights")
DATABASE_FULL = UnavailableError("the database's disk is full", code="storage_full")


def test_chunk_waits_for_room_whole_and_is_done_then(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    process.settings = process.settings.model_copy(update={"outage_seconds": 3600})
    job_id, (chunk,) = make_job(quiet, owner, 8)
    # More often than a fault of its own would be tried, and than a crash before it is narrowed.
    for error in (NO_ROOM, DATABASE_FULL, NO_ROOM, DATABASE_FULL, NO_ROOM, NO_ROOM):
        ring(process, owner, chunk, failing(error))
        make_due(quiet, chunk)
    row = look_at_chunk(quiet, chunk)
    assert (row.state, row.lo, row.hi, row.faults) == (ChunkState.PENDING, 0, 8, 6)
    assert chunk_ids(quiet, job_id) == [chunk]
    ring(process, owner, chunk, do_it)
    assert assert_closed(quiet, owner, job_id, JobState.SUCCEEDED).succeeded == 8


def test_disk_that_stays_full_fails_the_job_by_its_name(
    process: WorkerProcess, quiet: Database, owner: str
) -> None:
    process.settings = process.settings.model_copy(update={"outage_seconds": 0})
    job_id, (chunk,) = make_job(quiet, owner, 8)
    for _ in range(process.settings.max_kills):
        ring(process, owner, chunk, failing(NO_ROOM))
        make_due(quiet, chunk)
    job = assert_closed(quiet, owner, job_id, JobState.FAILED)
    assert job.error is not None
    assert job.error["code"] == "storage_full"
