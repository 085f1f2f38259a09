"""Retries on real parts: a new job over what failed or never ended, planned from the first one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from app.db.session import Database
from app.dispatch.stops import end_stopped_jobs
from app.errors import ConflictError, InvalidInputError, NotFoundError, StorageError
from app.jobs import plan
from app.jobs.cancel import cancel_job
from app.jobs.inputs import Entry, read_input
from app.jobs.items import JobItem
from app.jobs.narrow import Narrowed, narrow_killed_chunk
from app.jobs.record import record_prefix, record_stopped
from app.jobs.retry import submit_retry
from app.jobs.states import ChunkTask, JobKind, JobState
from app.jobs.tables import Chunk, Job
from app.models.states import VersionState
from app.models.tables import ModelVersion
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_version, make_tenant
from tests.jobs import (
    add_planned_job,
    assert_closed,
    chunk_ids,
    claim,
    finish,
    look_at_job,
    rows_of,
)
from tests.plans import all_items, make_source, planned, put, run_plan, submit
from tests.retries import predict_chunks


def cancel(db: Database, tenant_id: str, job_id: str) -> None:
    with db.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job_id)
    end_stopped_jobs(db)


def retry(db: Database, tenant_id: str, job_id: str, **words: Any) -> Job:
    with db.tenant(tenant_id) as session:
        return submit_retry(session, tenant_id, job_id, **words)


def retried(
    db: Database, store: ObjectStore, settings: Settings, tenant_id: str, job_id: str, **words: Any
) -> list[JobItem]:
    """The items of a retry once it is planned."""
    new = retry(db, tenant_id, job_id, **words)
    row = run_plan(db, store, settings, tenant_id, new.id)
    assert row.state == JobState.QUEUED, row.error
    items = all_items(db, new.id)
    assert row.total == len(items)
    return items


@pytest.fixture
def thirteen(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> tuple[str, list[JobItem]]:
    """A cancelled job of 13 items in five chunks, [0, 3) [3, 6) …, and all its items.

    1 and 4 failed, of the third chunk 6 is recorded, 9 to 12 were never touched.
    """
    lines = [
        json.dumps(
            {"key": f"{n}.png", "custom_id": f"c{n}", "label": f"l{n}", "metadata": {"n": n}}
        )
        for n in range(13)
    ]
    manifest = put(objects, f"{folder}list.jsonl", "\n".join(lines))
    job_id = submit(database, tenant_id, {"manifest": manifest})
    run_plan(database, objects, small, tenant_id, job_id)
    items = all_items(database, job_id)
    chunks = predict_chunks(database, job_id)
    finish(database, tenant_id, chunks[0], 1)
    finish(database, tenant_id, chunks[1], 4)
    lease = claim(database, tenant_id, chunks[2])
    with database.tenant(tenant_id) as session:
        record_prefix(session, lease, rows_of(lease, 1))
    cancel(database, tenant_id, job_id)
    job = assert_closed(database, tenant_id, job_id, JobState.CANCELLED)
    assert (job.failed, job.cancelled) == (2, 6)
    return job_id, items


@pytest.mark.parametrize(
    ("which", "ordinals"),
    [
        ("all", [1, 4, 7, 8, 9, 10, 11, 12]),
        ("failed", [1, 4]),
        ("unfinished", [7, 8, 9, 10, 11, 12]),
    ],
)
def test_retry_takes_what_it_is_told_in_its_order_with_all_that_goes_with_it(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    thirteen: tuple[str, list[JobItem]],
    which: str,
    ordinals: list[int],
) -> None:
    job_id, items = thirteen
    found = retried(database, objects, small, tenant_id, job_id, which=which)
    assert found == [items[ordinal] for ordinal in ordinals]
    assert (found[0].label, found[0].metadata) == (f"l{ordinals[0]}", {"n": ordinals[0]})


def test_retry_is_as_the_first_job_where_nothing_else_is_said(
    database: Database, tenant_id: str, thirteen: tuple[str, list[JobItem]]
) -> None:
    job_id, _ = thirteen
    with database.tenant(tenant_id) as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                options={"top_k": 5, "threshold": 0.5},
                priority=7,
                metadata_={"a": 1},
                max_failed_items=3,
            )
        )
        other = add_version(session, tenant_id, "other")
    first = look_at_job(database, tenant_id, job_id)
    same = retry(database, tenant_id, job_id)
    assert (same.kind, same.state, same.retry_of) == (JobKind.PREDICT, JobState.VALIDATING, job_id)
    assert same.input == {"retry_of": job_id, "which": "all"}
    assert same.model_version_id == first.model_version_id
    assert (same.options, same.priority, same.metadata_) == (first.options, 7, {"a": 1})
    assert same.max_failed_items is None
    changed = retry(
        database,
        tenant_id,
        job_id,
        model="other@1",
        options={"top_k": 1},
        priority=-1,
        metadata={},
    )
    assert changed.model_version_id == other.id
    assert changed.options == {"top_k": 1, "threshold": 0.5}
    assert (changed.priority, changed.metadata_) == (-1, {})


def test_retry_of_a_retry_takes_what_is_still_left(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    thirteen: tuple[str, list[JobItem]],
) -> None:
    job_id, items = thirteen
    second = retry(database, tenant_id, job_id)
    run_plan(database, objects, small, tenant_id, second.id)
    chunks = predict_chunks(database, second.id)
    finish(database, tenant_id, chunks[0], 0, 2)
    for chunk in chunks[1:]:
        finish(database, tenant_id, chunk)
    assert_closed(database, tenant_id, second.id, JobState.PARTIALLY_SUCCEEDED)
    assert retried(database, objects, small, tenant_id, second.id) == [items[1], items[7]]


def test_chunk_of_one_shard_stays_one_of_one_shard(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    source = make_source("upload", database, objects, tenant_id, folder)
    job_id = submit(database, tenant_id, source)
    run_plan(database, objects, small, tenant_id, job_id)
    items = all_items(database, job_id)
    for chunk in predict_chunks(database, job_id):
        finish(database, tenant_id, chunk, 3, 4, 5, 6)
    again = retry(database, tenant_id, job_id)
    run_plan(database, objects, small, tenant_id, again.id)
    # The second shard begins at item 5.
    assert [found for _, _, found in planned(database, again.id)] == [items[3:5], items[5:7]]


def test_chunk_that_was_narrowed_to_find_a_killer_is_retried_whole(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    source = make_source("items", database, objects, tenant_id, folder)
    job_id = submit(database, tenant_id, source)
    settings = small.model_copy(update={"chunk_items": 13})
    run_plan(database, objects, settings, tenant_id, job_id)
    items = all_items(database, job_id)
    (chunk,) = predict_chunks(database, job_id)
    lease = claim(database, tenant_id, chunk)
    with database.tenant(tenant_id) as session:
        record_prefix(session, lease, rows_of(lease, 3, failed=[1]))
        session.execute(update(Chunk).where(Chunk.id == chunk).values(kills=2))
        assert narrow_killed_chunk(session, tenant_id, chunk) is Narrowed.HALVED
    first, second = predict_chunks(database, job_id)
    with database.tenant(tenant_id) as session:
        lease = claim_any(database, tenant_id, second)
        record_prefix(session, lease, rows_of(lease, 2, failed=[lease.lo]))
    middle = lease.lo
    cancel(database, tenant_id, job_id)
    assert_closed(database, tenant_id, job_id, JobState.CANCELLED)
    assert first == chunk
    expected = [1, *range(3, middle), middle, *range(middle + 2, 13)]
    assert retried(database, objects, small, tenant_id, job_id) == [
        items[ordinal] for ordinal in expected
    ]


def claim_any(db: Database, tenant_id: str, chunk_id: str) -> Any:
    """The lease of a chunk although it is a suspect."""
    with db.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk_id).values(kills=0))
    return claim(db, tenant_id, chunk_id)


def test_retry_whose_plan_dies_midway_goes_on_where_it_was(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    thirteen: tuple[str, list[JobItem]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, items = thirteen
    again = retry(database, tenant_id, job_id)
    (plan_id,) = chunk_ids(database, again.id)
    monkeypatch.setattr(plan, "_PART_ITEMS", 3)

    def dying(*args: Any, **words: Any) -> Iterator[Entry]:
        for number, found in enumerate(read_input(*args, **words)):
            if number == 5:
                raise StorageError("the store is gone")
            yield found

    monkeypatch.setattr(plan, "read_input", dying)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    with pytest.raises(StorageError):
        plan.plan_job(database, objects, small, lease, should_stop=lambda: False)
    with database.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == plan_id)
            .values(state="pending", lease_until=None, worker_id=None)
        )
    monkeypatch.setattr(plan, "read_input", read_input)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)
    assert (lease.cursor or {})["planned"] == 3
    assert plan.plan_job(database, objects, small, lease, should_stop=lambda: False)
    assert all_items(database, again.id) == [items[n] for n in (1, 4, 7, 8, 9, 10, 11, 12)]


def test_images_whose_references_are_gone_fail_the_retry_openly(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    thirteen: tuple[str, list[JobItem]],
) -> None:
    job_id, _ = thirteen
    with database.system() as session:
        session.execute(
            update(Chunk).where(Chunk.id == predict_chunks(database, job_id)[0]).values(items=None)
        )
    again = retry(database, tenant_id, job_id)
    job = run_plan(database, objects, small, tenant_id, again.id)
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "input_invalid")
    assert "of 8 images" in str(job.error)


def test_what_cannot_be_retried_is_refused_with_its_reason(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    with database.tenant(tenant_id) as session:
        export = add_planned_job(session, tenant_id, 0, kind=JobKind.EXPORT)
        version = add_version(session, tenant_id).id
        done = add_planned_job(session, tenant_id, 2)
        session.execute(update(Job).where(Job.id == done).values(model_version_id=version))
    source = make_source("manifest", database, objects, tenant_id, folder)
    unread = submit(database, tenant_id, source)
    (plan_id,) = chunk_ids(database, unread)
    lease = claim(database, tenant_id, plan_id, task=ChunkTask.PLAN)

    def refusal(job_id: str, **words: Any) -> str:
        with pytest.raises((ConflictError, InvalidInputError, NotFoundError)) as told:
            retry(database, words.pop("tenant", tenant_id), job_id, **words)
        return told.value.code

    assert refusal(export) == "not_retryable"
    assert refusal(done) == "job_not_ended"
    finish(database, tenant_id, chunk_ids(database, done)[0])
    assert refusal(done) == "nothing_to_retry"
    assert refusal(done, tenant=make_tenant(database)) == "job_not_found"
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, unread)
    with database.tenant(tenant_id) as session:
        record_stopped(session, lease)
    assert refusal(unread) == "input_not_read"


def test_retry_by_a_version_that_takes_no_jobs_any_more_needs_another(
    database: Database, tenant_id: str, thirteen: tuple[str, list[JobItem]]
) -> None:
    job_id, _ = thirteen
    with database.tenant(tenant_id) as session:
        session.execute(
            update(ModelVersion)
            .where(ModelVersion.id == look_at_job(database, tenant_id, job_id).model_version_id)
            .values(state=VersionState.ARCHIVED)
        )
        other = add_version(session, tenant_id, "other").id
    with pytest.raises(ConflictError) as told:
        retry(database, tenant_id, job_id)
    assert told.value.code == "model_not_ready"
    assert retry(database, tenant_id, job_id, model="other@1").model_version_id == other
