"""Planning on real PostgreSQL and a real object store: every input becomes the right chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.errors import StorageError
from app.jobs import plan
from app.jobs.inputs import Entry, read_input
from app.jobs.items import JobItem, unpack_items
from app.jobs.states import ChunkTask, JobState
from app.jobs.submit import submit_predict
from app.jobs.tables import Chunk, Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_upload, add_version, entry
from tests.jobs import (
    assert_closed,
    chunk_ids,
    claim,
    let_lease_end,
    look_at_chunk,
    look_at_job,
)

BUCKET = "plans"


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Settings that cut chunks of three items."""
    return settings.model_copy(update={"chunk_items": 3})


@pytest.fixture
def folder(objects: ObjectStore, tenant_id: str) -> str:
    """A prefix of this test alone in a client's bucket."""
    objects.ensure_bucket(BUCKET)
    return f"{tenant_id}/"


def submit(db: Database, tenant_id: str, source: dict[str, Any]) -> str:
    with db.tenant(tenant_id) as session:
        version = add_version(session, tenant_id)
        return submit_predict(
            session,
            tenant_id,
            source=source,
            model=version.id,
            options={},
            own_bucket="darkroom",
        ).id


def run_plan(
    db: Database, store: ObjectStore, settings: Settings, tenant_id: str, job_id: str
) -> Job:
    (chunk_id,) = chunk_ids(db, job_id)
    lease = claim(db, tenant_id, chunk_id, task=ChunkTask.PLAN)
    assert plan.plan_job(db, store, settings, lease, should_stop=lambda: False)
    return look_at_job(db, tenant_id, job_id)


def planned(db: Database, job_id: str) -> list[tuple[int, int, list[JobItem]]]:
    """The job's chunks as (lo, hi, items); they follow each other without a hole."""
    with db.system() as session:
        rows = session.execute(
            select(Chunk.lo, Chunk.hi, Chunk.items)
            .where(Chunk.job_id == job_id, Chunk.task == ChunkTask.PREDICT)
            .order_by(Chunk.lo)
        ).all()
    chunks = [(row.lo, row.hi, unpack_items(row.items)) for row in rows]
    end = 0
    for lo, hi, items in chunks:
        assert lo == end
        assert hi - lo == len(items)
        end = hi
    return chunks


def all_items(db: Database, job_id: str) -> list[JobItem]:
    return [item for _, _, items in planned(db, job_id) for item in items]


def put(store: ObjectStore, key: str, body: str | bytes) -> str:
    store.put(BUCKET, key, body.encode() if isinstance(body, str) else body)
    return f"s3://{BUCKET}/{key}"


def test_prefix_is_cut_into_chunks_of_the_keys_that_globs_let_through(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    names = ["a.png", "b.txt", "c.png", "in/d.png", "in/e.png", "old/f.png", "z/g.PNG"]
    for name in names:
        put(objects, folder + name, b"")
    source = {"prefix": f"s3://{BUCKET}/{folder}", "include": ["*.png"], "exclude": ["old/*"]}
    job_id = submit(database, tenant_id, source)
    job = run_plan(database, objects, small, tenant_id, job_id)
    assert (job.state, job.total) == (JobState.QUEUED, 4)
    assert job.sealed_at is not None
    chunks = planned(database, job_id)
    assert [(lo, hi) for lo, hi, _ in chunks] == [(0, 3), (3, 4)]
    items = all_items(database, job_id)
    expected = [f"{folder}{name}" for name in ("a.png", "c.png", "in/d.png", "in/e.png")]
    assert [item.key for item in items] == expected
    assert items[0].custom_id == items[0].source == f"s3://{BUCKET}/{folder}a.png"
    everything = submit(database, tenant_id, {"prefix": f"s3://{BUCKET}/{folder}"})
    assert run_plan(database, objects, small, tenant_id, everything).total == 7


def test_jsonl_manifest_keeps_ranges_labels_and_metadata(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    lines: list[dict[str, Any]] = [
        {"key": "a.png", "custom_id": "first", "label": "cat", "metadata": {"n": [1, None]}},
        {"key": "s3://plans/pack.tar", "offset": 512, "length": 99},
        {"key": "s3://plans/pack.tar", "offset": 1024, "length": 7},
        {"key": "other.tar", "offset": 0, "length": 5},
        {"key": "b.png"},
    ]
    body = "\n\n".join(json.dumps(line) for line in lines) + "\n"
    location = put(objects, f"{folder}list.jsonl", body)
    job_id = submit(database, tenant_id, {"manifest": location})
    assert run_plan(database, objects, small, tenant_id, job_id).total == 5
    # One chunk is one ranged GET: a whole object, two ranges of one, one of another.
    assert [(lo, hi) for lo, hi, _ in planned(database, job_id)] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    items = all_items(database, job_id)
    assert items[0] == JobItem(
        "first", BUCKET, "a.png", f"s3://{BUCKET}/a.png", label="cat", metadata={"n": [1, None]}
    )
    assert (items[1].offset, items[1].length) == (512, 99)
    assert items[1].custom_id == "s3://plans/pack.tar#512+99"


def test_csv_manifest_with_a_byte_order_mark_and_windows_lines_is_read(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    body = (
        '\ufeffkey,label,offset,length,metadata\r\na.png,"cat, old",,,\r\n'
        'p.tar,,5,6,"{""n"": 1}"\r\n'
    )
    location = put(objects, f"{folder}list.csv", body)
    job_id = submit(database, tenant_id, {"manifest": location, "bucket": "plans"})
    job = run_plan(database, objects, small, tenant_id, job_id)
    assert job.state == JobState.QUEUED, job.error
    first, second = all_items(database, job_id)
    assert (first.key, first.label, first.offset) == ("a.png", "cat, old", None)
    assert (second.offset, second.length, second.metadata) == (5, 6, {"n": 1})


def test_inline_items_keep_what_came_with_them(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    body = {"key": "s3://plans/a.png", "custom_id": "one", "label": "cat", "metadata": {"n": 1}}
    job_id = submit(database, tenant_id, {"items": [body, {"key": "s3://plans/b.png"}]})
    run_plan(database, objects, small, tenant_id, job_id)
    first, second = all_items(database, job_id)
    assert (first.custom_id, first.label, first.metadata) == ("one", "cat", {"n": 1})
    assert second.custom_id == second.source == "s3://plans/b.png"


def test_upload_is_cut_at_its_shards_and_twin_names_are_told_apart(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str
) -> None:
    names = ["a.png", "b.png#2", "b.png", "b.png", "a.png#4", "a.png"]
    entries = [entry(number)._replace(name=name) for number, name in enumerate(names)]
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries[:4], entries[4:])
    job_id = submit(database, tenant_id, {"upload": upload.id})
    assert run_plan(database, objects, small, tenant_id, job_id).total == 6
    assert [(lo, hi) for lo, hi, _ in planned(database, job_id)] == [(0, 3), (3, 4), (4, 6)]
    items = all_items(database, job_id)
    assert [item.custom_id for item in items] == [
        "a.png", "b.png#2", "b.png", "b.png#3", "a.png#4", "a.png#5",
    ]  # fmt: skip
    assert len({item.key for item in items}) == 2
    assert items[1].offset == 1024 + 512


def test_twin_name_that_is_taken_too_gets_a_further_mark(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str
) -> None:
    names = ["a.png", "a.png#2", "a.png"]
    entries = [entry(number)._replace(name=name) for number, name in enumerate(names)]
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries)
    job_id = submit(database, tenant_id, {"upload": upload.id})
    run_plan(database, objects, small, tenant_id, job_id)
    custom_ids = [item.custom_id for item in all_items(database, job_id)]
    assert custom_ids == ["a.png", "a.png#2", "a.png#2#2"]


def test_dataset_split_gives_only_its_samples_with_their_labels(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str
) -> None:
    entries = [
        entry(number, "cat" if number % 2 else "dog", "test" if number < 4 else "train")
        for number in range(10)
    ]
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries)
        version = freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
    job_id = submit(database, tenant_id, {"dataset": "pets@1", "split": "test"})
    job = run_plan(database, objects, small, tenant_id, job_id)
    assert (job.total, job.dataset_version_id) == (4, version.id)
    assert [item.label for item in all_items(database, job_id)] == ["dog", "cat", "dog", "cat"]
    whole = submit(database, tenant_id, {"dataset": version.id})
    assert run_plan(database, objects, small, tenant_id, whole).total == 10


def test_bucket_that_is_not_there_fails_the_job_and_is_named(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    location = put(objects, f"{folder}list.jsonl", '{"key": "s3://no-such-bucket/a.png"}')
    sources: list[dict[str, Any]] = [
        {"prefix": "s3://no-such-bucket/x/"},
        {"manifest": "s3://no-such-bucket/list.csv"},
        {"items": [{"key": "s3://no-such-bucket/a.png"}]},
        {"manifest": location},
    ]
    for source in sources:
        job_id = submit(database, tenant_id, source)
        run_plan(database, objects, small, tenant_id, job_id)
        job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
        assert job.error is not None
        assert job.error["code"] == "input_invalid"
        assert "no-such-bucket" in job.error["errors"][0]["detail"]


def test_manifest_that_is_not_there_and_empty_inputs_fail_the_job(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    empty = put(objects, f"{folder}empty.jsonl", "\n\n")
    codes = []
    for source in (
        {"manifest": f"s3://{BUCKET}/{folder}none.csv"},
        {"manifest": empty},
        {"prefix": f"s3://{BUCKET}/{folder}nothing/"},
    ):
        job_id = submit(database, tenant_id, source)
        run_plan(database, objects, small, tenant_id, job_id)
        job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
        codes.append((job.error or {})["code"])
    assert codes == ["input_invalid", "input_empty", "input_empty"]


def test_nothing_is_planned_after_a_fault(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "_PART_ITEMS", 4)
    good = [json.dumps({"key": f"{number}.png"}) for number in range(20)]
    location = put(objects, f"{folder}list.jsonl", "\n".join([*good[:4], "{", *good[4:]]))
    job_id = submit(database, tenant_id, {"manifest": location})
    run_plan(database, objects, small, tenant_id, job_id)
    job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
    assert (job.total, job.cancelled) == (4, 4)


def test_of_150_bad_lines_100_are_listed_and_all_are_counted(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    good = [json.dumps({"key": f"{number}.png"}) for number in range(20)]
    location = put(objects, f"{folder}list.jsonl", "\n".join([*good, *["{"] * 150, *good[:1]]))
    job_id = submit(database, tenant_id, {"manifest": location})
    run_plan(database, objects, small, tenant_id, job_id)
    job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
    assert job.error is not None
    assert [fault["line"] for fault in job.error["errors"]] == list(range(21, 121))
    # And the last line, which repeats the first.
    assert job.error["errors_total"] == 151
    assert (job.total, planned(database, job_id)) == (0, [])


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a.png", "metadata": {"x": "\\ud800"}}',
        '{"key": "a.png", "metadata": {"x": 1e999}}',
        '{"key": "a.png", "metadata": {"x": "\\u0000"}}',
        '{"key": "a.png", "metadata": {"x": "%s"}}' % ("y" * 9000),
        '{"key": "a.png", "metadata": []}',
        '{"key": "a\\u0000.png"}',
        '{"key": "a.png", "label": "\\udfff"}',
        '{"key": "a.png", "custom_id": 7}',
        '{"key": "a.png", "offset": 1, "length": 0}',
        '{"key": "a.png", "offset": -1, "length": 5}',
        '{"key": "a.png", "unknown": 1}',
        '{"key": "s3://darkroom/tenants/x"}',
        "[" * 100_000,
        "null",
    ],
)
def test_line_that_cannot_be_kept_is_a_fault_and_no_crash(
    database: Database,
    objects: ObjectStore,
    small: Settings,
    tenant_id: str,
    folder: str,
    line: str,
) -> None:
    location = put(objects, f"{folder}list.jsonl", '{"key": "ok.png"}\n' + line)
    job_id = submit(database, tenant_id, {"manifest": location})
    run_plan(database, objects, small, tenant_id, job_id)
    job = assert_closed(database, tenant_id, job_id, JobState.FAILED)
    assert job.error is not None
    assert [fault["line"] for fault in job.error["errors"]] == [2]


def test_metadata_that_only_looks_like_a_nul_is_kept(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> None:
    metadata = {"regex": "\\u0000", "emoji": "🦊"}
    body = json.dumps({"key": "a.png", "metadata": metadata})
    location = put(objects, f"{folder}list.jsonl", body)
    job_id = submit(database, tenant_id, {"manifest": location})
    run_plan(database, objects, small, tenant_id, job_id)
    assert all_items(database, job_id)[0].metadata == metadata


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
            let_lease_end(database, plan_id)
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
    def read(*args: Any) -> Iterator[Entry]:
        for number, found in enumerate(read_input(*args)):
            if number == count:
                raise StorageError("the store is gone")
            yield found

    return read


def make_source(
    kind: str, db: Database, store: ObjectStore, tenant_id: str, folder: str
) -> dict[str, Any]:
    """Thirteen items of a kind; in upload and dataset two shards, and names that repeat."""
    if kind == "prefix":
        for number in range(13):
            put(store, f"{folder}{number:02d}.png", b"")
        return {"prefix": f"s3://{BUCKET}/{folder}"}
    if kind == "manifest":
        lines = [json.dumps({"key": f"{number}.png"}) for number in range(13)]
        return {"manifest": put(store, f"{folder}list.jsonl", "\n".join(lines))}
    if kind == "items":
        return {"items": [{"key": f"s3://{BUCKET}/{number}.png"} for number in range(13)]}
    names = [f"{number % 5}.png" for number in range(13)]
    entries = [
        entry(number, "cat", "test")._replace(name=name) for number, name in enumerate(names)
    ]
    with db.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries[:5], entries[5:])
        if kind == "upload":
            return {"upload": upload.id}
        version = freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
        return {"dataset": version.id}


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
    let_lease_end(database, plan_id)
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
