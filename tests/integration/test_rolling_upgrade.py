"""Rows as the release before kept them, and what it does while the next one migrates."""

from __future__ import annotations

from sqlalchemy import select, text, update

from app.db.session import Database
from app.jobs.items import slice_items, unpack_items
from app.jobs.narrow import Narrowed, narrow_killed_chunk
from app.jobs.retried import read_retried
from app.jobs.states import JobState
from app.jobs.tables import Chunk
from tests.jobs import add_planned_job, assert_closed, chunk_ids, claim, lose_worker, record_all
from tests.plans import submit


def write_as_before(db: Database, chunk_id: str, *, recorded: int = 0) -> None:
    """What a process of the release before leaves, which goes on while the schema is migrated.

    It knows nothing of ``first_item``. A plan of it leaves the column's default, and where it
    narrows it drops the references of what it recorded.
    """
    with db.system() as session:
        chunk = session.scalars(select(Chunk).where(Chunk.id == chunk_id)).one()
        items = slice_items(chunk.items or {}, recorded, chunk.hi - chunk.lo)
        session.execute(
            update(Chunk)
            .where(Chunk.id == chunk_id)
            .values(lo=Chunk.lo + recorded, first_item=0, items=items)
        )


def names_of(body: dict[str, object] | None) -> list[str]:
    return [item.custom_id for item in unpack_items(body or {})]


def test_worker_takes_its_own_items_of_a_chunk_that_the_release_before_planned(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 3, 4)
    first, second = chunk_ids(quiet, job_id)
    for chunk_id in (first, second):
        write_as_before(quiet, chunk_id)
    for chunk_id in (first, second):
        lease = claim(quiet, owner, chunk_id)
        assert names_of(lease.items) == [f"item {n}" for n in range(lease.lo, lease.hi)]
        record_all(quiet, lease, 5)
    assert_closed(quiet, owner, job_id, JobState.PARTIALLY_SUCCEEDED)
    retried = [
        (ordinal, item.custom_id) for ordinal, item in read_retried(quiet, owner, job_id, "all")
    ]
    assert retried == [(5, "item 5")]


def test_worker_takes_the_rest_of_a_chunk_that_the_release_before_gave_back(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 5)
    (chunk_id,) = chunk_ids(quiet, job_id)
    write_as_before(quiet, chunk_id, recorded=2)
    lease = claim(quiet, owner, chunk_id)
    assert names_of(lease.items) == ["item 2", "item 3", "item 4"]


def test_sweeper_halves_a_chunk_that_the_release_before_planned(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 3, 4)
    first, second = chunk_ids(quiet, job_id)
    write_as_before(quiet, second)
    for _ in range(2):
        claim(quiet, owner, second)
        lose_worker(quiet, second)
    with quiet.system() as session:
        assert narrow_killed_chunk(session, owner, second) is Narrowed.HALVED
    halves = [claim(quiet, owner, chunk_id) for chunk_id in chunk_ids(quiet, job_id)[1:]]
    assert [names_of(half.items) for half in halves] == [["item 3", "item 4"], ["item 5", "item 6"]]
    assert first not in [half.chunk_id for half in halves]


def test_submissions_go_on_while_the_next_release_adds_a_column(
    quiet: Database, owner: str
) -> None:
    for _ in range(12):
        submit(quiet, owner, {"prefix": "s3://photos/"})
    with quiet.system() as session:
        session.execute(text("ALTER TABLE jobs ADD COLUMN later text"))
    try:
        submit(quiet, owner, {"prefix": "s3://photos/"})
    finally:
        with quiet.system() as session:
            session.execute(text("ALTER TABLE jobs DROP COLUMN later"))
    submit(quiet, owner, {"prefix": "s3://photos/"})
