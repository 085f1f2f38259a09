"""Plans that die, or are told to stop, on real parts: the next attempt goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.db.session import Database
from app.errors import StorageError
from app.jobs import plan
from app.jobs.inputs import Entry, read_input
from app.jobs.states import ChunkTask, JobState
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.jobs import (
    assert_closed,
    chunk_ids,
    claim,
    look_at_chunk,
    look_at_job,
    lose_worker,
)
from tests.plans import all_items, make_source, planned, put, run_plan, submit


@pytest.mark.parametrize("kind", ["prefix", "manifest", "items", "upload", "dataset"])
def test_plan_that_dies_midway_goes_on_to_the_very_same_chunks(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    source = make_source(kind, database, objects, tenant_id, folder)
    whole = submit(database, tenant_id, source)
    run_plan(database, objects, small, tenant_id, whole)
    monkeypatch.setattr(plan, "_PART_ITEMS", 4)
    again = submit(database, tenant_id, source)
    (plan_id,) = chunk_ids(database, again)
    for dies_after in (6, 5, 100):
        lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
        monkeypatch.setattr(plan, "read_input", dying_reader(dies_after))
        try:
            plan.plan_job(database, objects, small, lease, should_stop=lambda: False)
        except StorageError:
            lose_worker(database, plan_id)
    job = look_at_job(database, tenant_id, again)
    assert (job.state, job.total) == (JobState.QUEUED, 13), job.error
    assert all_items(database, again) == all_items(database, whole)
    # Parts end where they are committed, so a chunk more may begin there, but none differs
    # from those of a plan that never died.
    undisturbed = submit(database, tenant_id, source)
    monkeypatch.setattr(plan, "read_input", read_input)
    run_plan(database, objects, small, tenant_id, undisturbed)
    assert planned(database, again) == planned(database, undisturbed)


def dying_reader(count: int) -> Any:
    def read(*args: Any, **words: Any) -> Iterator[Entry]:
        for number, found in enumerate(read_input(*args, **words)):
            if number == count:
                raise StorageError("the store is gone")
            yield found

    return read


def test_repeat_of_a_line_committed_before_the_plan_died_is_found(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [json.dumps({"key": f"{number}.png"}) for number in range(9)] + ['{"key": "1.png"}']
    location = put(objects, f"{folder}list.jsonl", "\n".join(lines))
    monkeypatch.setattr(plan, "_PART_ITEMS", 4)
    job_id = submit(database, tenant_id, {"manifest": location})
    (plan_id,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    monkeypatch.setattr(plan, "read_input", dying_reader(6))
    with pytest.raises(StorageError):
        plan.plan_job(database, objects, small, lease, should_stop=lambda: False)
    lose_worker(database, plan_id)
    monkeypatch.setattr(plan, "read_input", read_input)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    assert (lease.cursor or {})["planned"] == 4
    plan.plan_job(database, objects, small, lease, should_stop=lambda: False)
    job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
    assert job.error is not None
    assert [fault["line"] for fault in job.error["errors"]] == [10]
    # What the first attempt had committed was found, and never ran.
    assert (job.total, job.cancelled) == (8, 8)


def test_plan_stops_when_told_and_keeps_what_it_committed(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_source("manifest", database, objects, tenant_id, folder)
    monkeypatch.setattr(plan, "_PART_ITEMS", 4)
    monkeypatch.setattr(plan, "_LOOK_ENTRIES", 1)
    job_id = submit(database, tenant_id, source)
    (plan_id,) = chunk_ids(database, job_id)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    looks = iter([False] * 6 + [True])
    assert not plan.plan_job(database, objects, small, lease, should_stop=lambda: next(looks))
    job = look_at_job(database, tenant_id, job_id)
    assert (job.state, job.total, job.sealed_at) == (JobState.VALIDATING, 4, None)
    assert (look_at_chunk(database, plan_id).cursor or {})["planned"] == 4
