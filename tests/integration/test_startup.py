"""Processes refuse to start on parts that would lose what they are given, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
from celery import Celery
from pydantic import SecretStr

from app import startup
from app.db.durable import durability_faults
from app.db.session import Database
from app.errors import SettingsError, UnavailableError
from app.queues.celery import make_celery
from app.queues.keeps import eviction_fault, message_faults
from app.settings import Settings
from app.stack.valkey import LocalValkey
from app.startup import check_start
from tests.nursery import run_forked
from tests.service import environment


@pytest.fixture
def strict(settings: Settings) -> Settings:
    """Settings that insist on durable parts, which the tests' PostgreSQL is not."""
    return settings.model_copy(update={"require_durable": True})


@pytest.fixture
def celery(settings: Settings) -> Iterator[Celery]:
    """The service's own Celery application."""
    celery = make_celery(settings)
    yield celery
    celery.close()


@contextmanager
def evicting(valkey: LocalValkey) -> Iterator[None]:
    with redis.Redis.from_url(valkey.client_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            yield
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_postgresql_that_may_lose_a_commit_is_refused_by_setting_value_and_cure(
    strict: Settings, database: Database, celery: Celery
) -> None:
    with pytest.raises(SettingsError) as refused:
        check_start(strict, database, celery)
    assert refused.value.code == "not_durable"
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{name}=off" in refused.value.detail
        assert f"Set {name}=on" in refused.value.detail
    assert "maxmemory" not in refused.value.detail
    assert "DARKROOM_REQUIRE_DURABLE=false" in refused.value.detail


def test_setting_of_the_session_counts_as_of_the_server(database: Database) -> None:
    from sqlalchemy import text

    with database.anonymous() as session:
        session.execute(text("SET LOCAL synchronous_commit = local"))
        assert not any("synchronous_commit" in fault for fault in durability_faults(session))


def test_redis_that_evicts_is_refused(
    strict: Settings,
    database: Database,
    celery: Celery,
    valkey: LocalValkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(startup, "durability_faults", lambda _session: [])
    check_start(strict, database, celery)
    with evicting(valkey), pytest.raises(SettingsError, match="maxmemory-policy=allkeys-lru"):
        check_start(strict, database, celery)


def test_redis_that_is_away_or_does_not_tell_is_no_reason_to_refuse(
    strict: Settings, database: Database, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "durability_faults", lambda _session: [])
    nowhere = strict.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    check_start(nowhere, database, celery)
    assert eviction_fault(None) is None


def test_message_that_is_not_json_is_refused_even_in_tests(
    settings: Settings, database: Database, celery: Celery
) -> None:
    assert message_faults(celery) == []
    check_start(settings, database, celery)
    celery.conf.accept_content = ["json", "pickle"]
    with pytest.raises(SettingsError, match="accept_content"):
        check_start(settings, database, celery)


def test_database_that_is_away_is_told_from_one_that_is_not_durable(
    strict: Settings, celery: Celery
) -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(UnavailableError):
        check_start(strict, nowhere, celery)
    nowhere.close()


@pytest.mark.parametrize(
    "module", [["app.dispatch.run"], ["worker.main", "--role", "io"]], ids=["dispatcher", "worker"]
)
def test_process_ends_with_a_sentence_and_no_traceback(strict: Settings, module: list[str]) -> None:
    ended = run_forked(module[0], module[1:], environment(strict), seconds=120)
    assert ended.status == 1
    assert "fsync=off" in ended.said
    assert "Traceback" not in ended.said
