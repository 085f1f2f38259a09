"""Rows that nobody reads any more are deleted: old idempotency keys, workers that went."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from app.clock import utc_now
from app.db.session import Database
from app.dispatch import cleanup_rows
from app.jobs.tables import IdempotencyKey, WorkerRow
from app.models.tables import QueryCount
from tests.factories import add_key
from tests.jobs import add_worker, make_old


def test_old_idempotency_keys_go(quiet: Database, owner: str) -> None:
    add_key(quiet, owner, "old", 25)
    add_key(quiet, owner, "young", 23)
    assert cleanup_rows.clean_rows(quiet, event_days=7) == 1
    with quiet.system() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["young"]


def test_workers_that_went_a_day_ago_go_and_silent_ones_are_marked_first(quiet: Database) -> None:
    with quiet.system() as session:
        here, silent, gone, just_gone = (add_worker(session) for _ in range(4))
    make_old(quiet, WorkerRow, "last_seen_at", 2, silent)
    make_old(quiet, WorkerRow, "last_seen_at", 30, gone)
    make_old(quiet, WorkerRow, "gone_at", 25, gone)
    make_old(quiet, WorkerRow, "gone_at", 1, just_gone)
    assert cleanup_rows.clean_rows(quiet, event_days=7) == 1
    with quiet.system() as session:
        rows = {row.id: row.gone_at for row in session.scalars(select(WorkerRow))}
    assert set(rows) == {here, silent, just_gone}
    assert rows[here] is None
    assert rows[silent] is not None


def test_counts_of_query_budgets_go_after_a_month(quiet: Database, owner: str) -> None:
    with quiet.system() as session:
        session.add_all(
            QueryCount(tenant_id=owner, subject="key_x", day=utc_now().date() - age, items=1)
            for age in (timedelta(days=0), timedelta(days=30), timedelta(days=40))
        )
    assert cleanup_rows.clean_rows(quiet, event_days=7) == 1
    with quiet.system() as session:
        left = session.scalars(select(QueryCount.day).where(QueryCount.tenant_id == owner)).all()
    assert len(left) == 2
