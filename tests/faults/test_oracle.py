"""The oracle itself: each way to break the promise is done by hand, and must be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import select, text

from app.db.session import Database
from app.dispatch.leases import free_ended_leases
from app.ids import new_id
from app.jobs.claim import Lease
from app.jobs.item_rows import ItemRow
from app.jobs.record import record_chunk
from app.jobs.states import ItemState, JobState
from app.jobs.tables import Job
from app.settings import Settings
from app.stack.postgres import ADMIN, DATABASE_NAME, LocalPostgres
from app.tenants.keys import create_tenant
from tests.faults.audit import install_audit, remove_audit
from tests.faults.images import expected_classes
from tests.faults.library import Picture, draw_pictures
from tests.faults.oracle import Accepted, judge, right_ends
from tests.jobs import add_planned_job, chunk_ids, claim, let_lease_end

ITEMS = 12


@pytest.fixture(scope="module", autouse=True)
def audited(settings: Settings) -> Iterator[None]:
    """A database that writes down what happens, for this module alone."""
    install_audit(settings.system_url)
    yield
    remove_audit(settings.system_url)


def _rows(lease: Lease, pictures: list[Picture]) -> list[ItemRow]:
    return [
        ItemRow(
            lease.lo + index,
            picture.custom_id,
            picture.custom_id,
            ItemState.SUCCEEDED,
            prediction=[[name, 0.25] for name in expected_classes(picture.data)],
        )
        for index, picture in enumerate(pictures[lease.lo : lease.hi])
    ]


@pytest.fixture
def job(database: Database, tenant_id: str) -> Accepted:
    """A job that ended as it should: its second chunk after a lease that was lost."""
    pictures = draw_pictures(5, ITEMS)
    with database.system() as session:
        job_id = add_planned_job(session, tenant_id, ITEMS // 2, ITEMS // 2)
    first, second = chunk_ids(database, job_id)
    claim(database, tenant_id, second)
    let_lease_end(database, second)
    free_ended_leases(database)
    for chunk in (first, second):
        lease = claim(database, tenant_id, chunk)
        with database.tenant(tenant_id) as session:
            record_chunk(session, lease, _rows(lease, pictures))
    return Accepted(job_id, tenant_id, right_ends(pictures))


def _plant(database: Database, job: Accepted, *statements: str) -> None:
    """Break a rule as the tables' owner, who passes every guard of the service."""
    with database.system() as session:
        for statement in statements:
            session.execute(text(statement), {"job": job.job_id})


def test_job_that_ended_as_promised_breaks_nothing(database: Database, job: Accepted) -> None:
    verdict = judge(database, [job])
    assert verdict.is_kept, verdict.breaches
    assert (verdict.jobs, verdict.items, verdict.closings) == (1, ITEMS, 1)


def test_deleted_item_is_lost(database: Database, job: Accepted) -> None:
    _plant(database, job, "DELETE FROM items WHERE job_id = :job AND ordinal = 3")
    verdict = judge(database, [job])
    assert verdict.lost == 1
    assert any("changed or deleted" in breach for breach in verdict.breaches)


def test_job_whose_row_is_gone_is_lost_whole(database: Database, job: Accepted) -> None:
    _plant(database, job, "DELETE FROM jobs WHERE id = :job")
    verdict = judge(database, [job])
    assert (verdict.lost, verdict.closed_wrong) == (ITEMS, 1)


def test_item_that_stands_at_two_ordinals_is_there_twice(database: Database, job: Accepted) -> None:
    _plant(
        database,
        job,
        "INSERT INTO items (job_id, ordinal, tenant_id, seq, attempt, custom_id, source, state, "
        "prediction) SELECT job_id, 99, tenant_id, seq, attempt, custom_id, source, state, "
        "prediction FROM items WHERE job_id = :job AND ordinal = 3",
    )
    assert judge(database, [job]).twice == 1


def test_answer_to_other_bytes_is_wrong(database: Database, job: Accepted) -> None:
    swapped = (
        "UPDATE items SET prediction = (SELECT prediction FROM items WHERE job_id = :job AND "
        "ordinal = 4) WHERE job_id = :job AND ordinal = 3"
    )
    _plant(database, job, swapped)
    assert any("1 wrong answers" in breach for breach in judge(database, [job]).breaches)


def test_failed_item_that_should_have_succeeded_is_wrong(database: Database, job: Accepted) -> None:
    _plant(
        database,
        job,
        "UPDATE items SET state = 'failed', prediction = NULL, error = '{\"code\": \"x\"}' "
        "WHERE job_id = :job AND ordinal = 3",
        "UPDATE jobs SET succeeded = succeeded - 1, failed = 1 WHERE id = :job",
    )
    assert any("1 wrong answers" in breach for breach in judge(database, [job]).breaches)


def test_second_closing_is_seen_although_the_state_is_right(
    database: Database, job: Accepted
) -> None:
    _plant(database, job, "UPDATE jobs SET ended_at = ended_at + interval '1 s' WHERE id = :job")
    verdict = judge(database, [job])
    assert (verdict.closed_wrong, verdict.closings) == (1, 2)


def test_job_that_never_closed_is_seen(database: Database, job: Accepted) -> None:
    open_job = replace(job, job_id=_open_job(database, job.tenant_id))
    assert judge(database, [job, open_job]).closed_wrong == 1


def _open_job(database: Database, tenant_id: str) -> str:
    with database.system() as session:
        return add_planned_job(session, tenant_id, ITEMS)


def test_wrong_end_is_seen(database: Database, job: Accepted) -> None:
    wanted = replace(job, ends=frozenset({JobState.CANCELLED}))
    assert judge(database, [wanted]).closed_wrong == 1


@pytest.mark.parametrize("column", ["succeeded", "failed", "total"])
def test_counter_that_is_not_the_number_of_rows_is_seen(
    database: Database, job: Accepted, column: str
) -> None:
    # A CHECK stands in the way of counts above the total.
    change = "total = total + 1" if column == "total" else f"total = total + 1, {column} = "
    change += "" if column == "total" else f"{column} + 1"
    with database.system() as session:
        session.execute(text(f"UPDATE jobs SET {change} WHERE id = :job"), {"job": job.job_id})
    assert not judge(database, [job]).is_kept


def test_row_of_another_tenant_is_seen(
    database: Database, postgres: LocalPostgres, job: Accepted
) -> None:
    with database.system() as session:
        other = create_tenant(session, new_id("other").replace("_", "-")).id
    admin = postgres.url(ADMIN, postgres.secrets.admin_password, DATABASE_NAME)
    with psycopg.connect(admin) as connection:
        # Foreign keys would not let it happen.
        connection.execute("SET session_replication_role = replica")
        words = (other, job.job_id)
        connection.execute(
            "UPDATE items SET tenant_id = %s WHERE job_id = %s AND ordinal = 0", words
        )
        connection.execute("UPDATE chunks SET tenant_id = %s WHERE job_id = %s", words)
    breaches = " ".join(judge(database, [job]).breaches)
    assert "items of another tenant" in breaches
    assert "chunks of another tenant" in breaches


def test_result_of_an_older_attempt_is_seen(database: Database, job: Accepted) -> None:
    _plant(
        database,
        job,
        # What an unfenced worker would do: its own attempt was 1, and 2 holds the chunk.
        "CREATE TEMP TABLE late ON COMMIT DROP AS SELECT * FROM items "
        "WHERE job_id = :job AND ordinal = 8",
        "DELETE FROM items WHERE job_id = :job AND ordinal = 8",
        "UPDATE late SET attempt = 1",
        "INSERT INTO items SELECT * FROM late",
    )
    breaches = judge(database, [job]).breaches
    assert any("attempts that held no lease" in breach for breach in breaches)


def test_open_lease_of_an_ended_job_is_seen(database: Database, job: Accepted) -> None:
    _plant(
        database,
        job,
        "UPDATE chunks SET state = 'running', lease_until = now(), attempt = attempt + 1 "
        "WHERE job_id = :job AND lo = 0",
    )
    assert any("open chunks" in breach for breach in judge(database, [job]).breaches)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE job_id = :job AND number = 2",
        "DELETE FROM events WHERE job_id = :job AND type = 'job.succeeded'",
        "UPDATE events SET type = 'job.failed' WHERE job_id = :job AND type = 'job.succeeded'",
        "UPDATE events SET type = 'job.running' WHERE job_id = :job AND number = 3",
    ],
)
def test_event_that_is_missing_or_wrong_is_seen(
    database: Database, job: Accepted, statement: str
) -> None:
    _plant(database, job, statement)
    assert any("event" in breach for breach in judge(database, [job]).breaches)


def test_job_that_nobody_was_told_of_is_there_twice(database: Database, job: Accepted) -> None:
    _open_job(database, job.tenant_id)
    assert judge(database, [job]).twice == 1
    with database.system() as session:
        jobs = session.scalars(select(Job.id).where(Job.tenant_id == job.tenant_id)).all()
    assert len(jobs) == 2
