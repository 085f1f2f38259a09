"""Planning on real PostgreSQL and a real object store: every input becomes the right chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.jobs import plan
from app.jobs.items import JobItem
from app.jobs.states import JobState
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_upload, entry
from tests.jobs import assert_closed
from tests.plans import BUCKET, all_items, planned, put, run_plan, submit


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
    assert f"the prefix s3://{BUCKET}/{folder}nothing/" in (job.error or {})["detail"]
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


def test_first_chunks_are_small_and_double_so_that_results_come_soon(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, folder: str
) -> None:
    lines = [json.dumps({"key": f"{number}.png"}) for number in range(1000)]
    job_id = submit(
        database, tenant_id, {"manifest": put(objects, f"{folder}list.jsonl", "\n".join(lines))}
    )
    run_plan(database, objects, settings, tenant_id, job_id)
    sizes = [hi - lo for lo, hi, _ in planned(database, job_id)]
    assert sizes == [64, 64, 128, 256, 256, 232]
