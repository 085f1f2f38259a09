"""Exports that include retries: every item once, by the best answer that any job gave."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import delete, update

from app.db.session import Database
from app.dispatch.stops import end_stopped_jobs
from app.errors import InvalidInputError
from app.exports import merge, read
from app.exports.read import ExportMismatchError
from app.exports.run import ExportedFile, write_export
from app.ids import JOB, new_id
from app.jobs import retried
from app.jobs.cancel import cancel_job
from app.jobs.item_rows import ItemRow
from app.jobs.record import record_chunk, record_prefix, record_stopped
from app.jobs.retry import submit_retry
from app.jobs.states import ItemState, JobState
from app.jobs.submit import submit_export
from app.jobs.tables import Item, Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import add_version
from tests.jobs import claim, look_at_job
from tests.plans import put, run_plan, submit
from tests.retries import predict_chunks

OUT = "darkroom"


class World:
    """A tenant whose workers answer as a test says: ``{custom_id: class, or None to fail}``."""

    def __init__(
        self, db: Database, store: ObjectStore, settings: Settings, tenant_id: str, folder: str
    ) -> None:
        self.db, self.store, self.settings = db, store, settings
        self.tenant_id, self.folder = tenant_id, folder

    def first(self, count: int) -> str:
        """A planned job of items c0, c1, …."""
        lines = [json.dumps({"key": f"{n}.png", "custom_id": f"c{n}"}) for n in range(count)]
        manifest = put(self.store, f"{self.folder}list.jsonl", "\n".join(lines))
        job_id = submit(self.db, self.tenant_id, {"manifest": manifest})
        run_plan(self.db, self.store, self.settings, self.tenant_id, job_id)
        return job_id

    def retry(self, job_id: str, **words: Any) -> str:
        """A planned retry."""
        with self.db.tenant(self.tenant_id) as session:
            new = submit_retry(session, self.tenant_id, job_id, **words).id
        run_plan(self.db, self.store, self.settings, self.tenant_id, new)
        return new

    def answer(self, job_id: str, answers: dict[str, str | None], *, stop: bool = False) -> None:
        """Record the named items, which are the first of their chunks; then cancel the rest."""
        for chunk in predict_chunks(self.db, job_id):
            lease = claim(self.db, self.tenant_id, chunk)
            items = (lease.items or {})["rows"]
            rows = [
                _row(lease.lo + place, item[0], answers[item[0]])
                for place, item in enumerate(items)
                if item[0] in answers
            ]
            with self.db.tenant(self.tenant_id) as session:
                if len(rows) == len(items):
                    record_chunk(session, lease, rows)
                else:
                    record_prefix(session, lease, rows)
        if stop:
            with self.db.tenant(self.tenant_id) as session:
                cancel_job(session, self.tenant_id, job_id)
            end_stopped_jobs(self.db)

    def export(self, job_id: str, **words: Any) -> ExportedFile:
        return write_export(
            self.db,
            self.store,
            OUT,
            tenant_id=self.tenant_id,
            job_id=job_id,
            export_job_id=new_id(JOB),
            attempt=1,
            **{"format": "jsonl", "include_retries": True, **words},
        )

    def rows(self, job_id: str, **words: Any) -> list[tuple[int, str, str | None, str]]:
        """(ordinal, custom_id, class, model) of an export."""
        return [
            (line["ordinal"], line["custom_id"], line["class"], line["model"])
            for line in map(json.loads, self.read(self.export(job_id, **words)).splitlines())
        ]

    def read(self, file: Any) -> bytes:
        return self.store.read(OUT, file.object_key)


def _row(ordinal: int, custom_id: str, answer: str | None) -> ItemRow:
    if answer is None:
        error = {"code": "fetch_failed", "detail": "again and again"}
        return ItemRow(ordinal, custom_id, "x", ItemState.FAILED, error=error)
    return ItemRow(ordinal, custom_id, "x", ItemState.SUCCEEDED, prediction=[[answer, 0.5]])


@pytest.fixture
def world(
    database: Database, objects: ObjectStore, small: Settings, tenant_id: str, folder: str
) -> World:
    objects.ensure_bucket(OUT)
    return World(database, objects, small, tenant_id, folder)


def ok(count: int) -> dict[str, str | None]:
    return {f"c{number}": "cat" for number in range(count)}


def test_items_that_failed_or_never_ended_are_answered_by_the_retry_in_their_places(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAGE_ROWS_MAX", 2)
    monkeypatch.setattr(merge, "_PAGE_ROWS_MIN", 1)
    job_id = world.first(8)
    # c5 to c7 are never touched.
    world.answer(job_id, ok(5) | {"c1": None, "c4": None}, stop=True)
    again = world.retry(job_id)
    world.answer(again, {"c1": "dog", "c4": "dog", "c5": "dog", "c6": None, "c7": "dog"})
    model = world.rows(job_id, include_retries=False)[0][3]
    expected = ["cat", "dog", "cat", "cat", "dog", "dog", None, "dog"]
    assert world.rows(job_id) == [(n, f"c{n}", expected[n], model) for n in range(8)]
    assert [row[0] for row in world.rows(job_id, only="failed")] == [6]
    assert [row[0] for row in world.rows(job_id, only="succeeded")] == [0, 1, 2, 3, 4, 5, 7]
    # What the first job itself answered, as ever.
    plain = world.rows(job_id, include_retries=False)
    assert [row[0] for row in plain] == [0, 1, 2, 3, 4]


def test_manifest_names_what_was_merged_and_counts_what_was_written(world: World) -> None:
    job_id = world.first(3)
    world.answer(job_id, ok(3) | {"c1": None})
    again = world.retry(job_id, which="failed")
    world.answer(again, {"c1": "dog"})
    exported = world.export(job_id)
    manifest = json.loads(world.read(exported.manifest))
    assert (manifest["rows"], manifest["counts"]) == (3, {"succeeded": 3})
    assert manifest["job"]["counts"]["failed"] == 1
    (merged,) = manifest["merged"]
    assert (merged["id"], merged["retry_of"], merged["which"]) == (again, job_id, "failed")
    assert merged["counts"] == {"total": 1, "succeeded": 1, "failed": 0, "skipped": 0}
    assert "merged" not in json.loads(
        world.read(world.export(job_id, include_retries=False).manifest)
    )


def test_retries_of_several_kinds_and_of_each_other_are_merged(world: World) -> None:
    job_id = world.first(8)
    world.answer(job_id, ok(5) | {"c0": None, "c1": None, "c2": None}, stop=True)
    failed = world.retry(job_id, which="failed")
    world.answer(failed, {"c0": "first", "c1": None, "c2": None})
    deeper = world.retry(failed)
    world.answer(deeper, {"c1": "deeper", "c2": None})
    unfinished = world.retry(job_id, which="unfinished")
    # The last chunk of it is never claimed: it is still open.
    world.answer(unfinished, {"c5": "late", "c6": None})
    assert [row[2] for row in world.rows(job_id)] == [
        *("first", "deeper", None, "cat", "cat", "late", None)
    ]
    assert [row[0] for row in world.rows(job_id)] == list(range(7))


def test_newest_success_beats_every_failure_and_older_successes(world: World) -> None:
    job_id = world.first(3)
    world.answer(job_id, ok(3) | {"c0": None, "c1": None})
    rounds: list[dict[str, str | None]] = [
        {"c0": "older", "c1": "older"},
        {"c0": "newer", "c1": None},
        {"c0": None, "c1": None},
    ]
    for answers in rounds:
        world.answer(world.retry(job_id), answers)
    assert [row[2] for row in world.rows(job_id)] == ["newer", "older", "cat"]


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_each_row_names_the_model_that_answered_it(world: World, format_: str) -> None:
    job_id = world.first(3)
    world.answer(job_id, ok(3) | {"c1": None})
    with world.db.tenant(world.tenant_id) as session:
        other = add_version(session, world.tenant_id, "other").id
    world.answer(world.retry(job_id, model="other@1"), {"c1": "dog"})
    own = look_at_job(world.db, world.tenant_id, job_id).model_version_id
    content = world.read(world.export(job_id, format=format_))
    if format_ == "jsonl":
        versions = [json.loads(line)["model_version_id"] for line in content.splitlines()]
    elif format_ == "csv":
        lines = content.decode().splitlines()
        place = lines[0].split(",").index("model_version_id")
        versions = [line.split(",")[place - len(lines[0].split(","))] for line in lines[1:]]
    else:
        table = parquet.read_table(io.BytesIO(content))
        versions = table["model_version_id"].to_pylist()
    assert versions == [own, other, own]


def test_open_job_has_no_retries_and_is_exported_as_it_stands(world: World) -> None:
    job_id = world.first(4)
    world.answer(job_id, {"c0": "cat"})
    assert [row[0] for row in world.rows(job_id)] == [0]


def test_what_is_there_can_be_exported_while_a_worker_has_yet_to_let_go(world: World) -> None:
    job_id = world.first(9)
    world.answer(job_id, ok(3))
    held = claim(world.db, world.tenant_id, predict_chunks(world.db, job_id)[1])
    with world.db.tenant(world.tenant_id) as session:
        cancel_job(session, world.tenant_id, job_id)
    end_stopped_jobs(world.db)
    assert look_at_job(world.db, world.tenant_id, job_id).state == JobState.CANCELLING
    assert [row[0] for row in world.rows(job_id)] == [0, 1, 2]
    with world.db.tenant(world.tenant_id) as session:
        record_stopped(session, held, [_row(3, "c3", "dog")])
    assert look_at_job(world.db, world.tenant_id, job_id).state == JobState.CANCELLED
    assert [row[0] for row in world.rows(job_id)] == [0, 1, 2, 3]


def test_retry_whose_rows_are_not_those_that_it_counts_is_found(world: World) -> None:
    job_id = world.first(3)
    world.answer(job_id, ok(3) | {"c1": None, "c2": None})
    again = world.retry(job_id)
    world.answer(again, {"c1": "dog", "c2": "dog"})
    with world.db.system() as session:
        session.execute(delete(Item).where(Item.job_id == again, Item.ordinal == 1))
    with pytest.raises(ExportMismatchError, match=again):
        world.export(job_id)


def test_retry_with_more_items_than_there_were_to_retry_is_found(world: World) -> None:
    job_id = world.first(3)
    world.answer(job_id, ok(3) | {"c1": None})
    again = world.retry(job_id)
    world.answer(again, {"c1": "dog"})
    with world.db.system() as session:
        session.execute(update(Job).where(Job.id == again).values(total=2, cancelled=1))
    with pytest.raises(ExportMismatchError, match="more items"):
        world.export(job_id)


def test_more_retries_than_can_be_merged_are_refused_at_submission(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retried, "MAX_MERGED_RETRIES", 2)
    job_id = world.first(2)
    world.answer(job_id, ok(2) | {"c1": None})

    def submit_merged() -> Job:
        with world.db.tenant(world.tenant_id) as session:
            return submit_export(
                session, world.tenant_id, job_id=job_id, format="csv", include_retries=True
            )

    last = job_id
    for _ in range(2):
        last = world.retry(last)
        world.answer(last, {"c1": None})
    assert submit_merged().options == {"format": "csv", "only": "all", "include_retries": True}
    world.retry(last)
    with pytest.raises(InvalidInputError) as told:
        submit_merged()
    assert told.value.code == "too_many_retries"
    assert look_at_job(world.db, world.tenant_id, last).state == JobState.FAILED
