"""Pooled connections: one that died while it rested is replaced before anyone notices."""

from __future__ import annotations

import traceback
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import session as sessions
from app.db.session import Database
from app.errors import UnavailableError
from app.settings import Settings
from app.stack.postgres import LocalPostgres

_BACKEND = text("SELECT pg_backend_pid()")


@pytest.fixture
def one(settings: Settings) -> Database:
    """A database with one pooled connection."""
    return Database(settings.database_url.get_secret_value(), pool_size=1)


def end_backend(postgres: LocalPostgres, pid: int) -> None:
    with psycopg.connect(postgres.admin_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_connection_that_died_while_it_rested_is_replaced(
    one: Database, postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_PING_AFTER_SECONDS", 0)
    with one.anonymous() as session:
        pid = session.scalar(_BACKEND)
    end_backend(postgres, pid)
    with one.anonymous() as session:
        assert session.scalar(_BACKEND) != pid
    end_backend(postgres, one.ask("SELECT pg_backend_pid()", {})[0][0])
    assert one.ask("SELECT 1", {})[0][0] == 1
    one.close()


def test_connection_that_died_a_moment_ago_costs_one_error_that_may_be_tried_again(
    one: Database, postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_PING_AFTER_SECONDS", 3600)
    with one.anonymous() as session:
        pid = session.scalar(_BACKEND)
    end_backend(postgres, pid)
    with pytest.raises(UnavailableError), one.anonymous() as session:
        session.scalar(_BACKEND)
    with one.anonymous() as session:
        pid = session.scalar(_BACKEND)
    end_backend(postgres, pid)
    with pytest.raises(UnavailableError):
        one.ask("SELECT 1", {})
    assert one.ask("SELECT pg_backend_pid()", {})[0][0] != pid
    one.close()


def test_connections_that_died_together_cost_one_error(
    settings: Settings, postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_PING_AFTER_SECONDS", 3600)
    several = Database(settings.database_url.get_secret_value(), pool_size=4)
    with ExitStack() as held:
        pids = [held.enter_context(several.anonymous()).scalar(_BACKEND) for _ in range(4)]
    for pid in pids:
        end_backend(postgres, pid)
    with pytest.raises(UnavailableError):
        several.ask("SELECT 1", {})
    for _ in range(8):
        assert several.ask("SELECT pg_backend_pid()", {})[0][0] not in pids
    several.close()


def test_question_that_fails_leaves_its_connection_as_good_as_before(one: Database) -> None:
    pid = one.ask("SELECT pg_backend_pid()", {})[0][0]
    with pytest.raises(psycopg.errors.DivisionByZero):
        one.ask("SELECT 1 / 0", {})
    assert one.ask("SELECT pg_backend_pid()", {})[0][0] == pid
    one.close()


def test_system_plans_each_question_by_the_tables_as_they_are(database: Database) -> None:
    shown = text("SHOW plan_cache_mode")
    with database.system() as session:
        assert session.scalar(shown) == "force_custom_plan"
    with database.anonymous() as session:
        assert session.scalar(shown) == "auto"


def test_question_without_a_tenant_sees_no_rows_and_leaves_no_transaction(
    one: Database, tenant_id: str
) -> None:
    with one.tenant(tenant_id) as session:
        assert session.scalar(text("SELECT count(*) FROM tenants")) == 1
    assert one.ask("SELECT count(*) FROM tenants", {})[0][0] == 0
    assert one.ask("SELECT pg_current_xact_id_if_assigned()", {})[0][0] is None
    with one.tenant(tenant_id) as session:
        assert session.scalar(text("SELECT count(*) FROM tenants")) == 1
    one.close()


def test_error_of_a_statement_shows_none_of_its_words(database: Database) -> None:
    address = "https://store.example/a.png?signature=of-a-client"
    with pytest.raises(DBAPIError) as failed, database.system() as session:
        session.execute(text("SELECT 1 / :none, :address"), {"none": 0, "address": address})
    shown = "".join(traceback.format_exception(failed.value))
    assert "division by zero" in shown
    assert address not in shown
