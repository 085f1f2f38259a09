"""The doctor's checks on real parts, whole and broken."""

import pytest
import redis
from pydantic import SecretStr

from app.cli.checks import (
    check_database,
    check_disk,
    check_parts,
    check_redis,
    check_store,
    workers_verdict,
)


def verdicts(settings):
    return {check.name: check for check in check_parts(settings)}


def test_whole_parts_are_ok(settings, objects):
    objects.ensure_bucket(settings.bucket)
    found = verdicts(settings)
    # The tests' own PostgreSQL is fast, and nothing more.
    assert found["database"].verdict == "warn", found["database"]
    assert "fsync=off" in found["database"].detail
    assert found["redis"].verdict == "ok", found["redis"]
    assert found["object store"].verdict == "ok", found["object store"]
    assert found["workers"].verdict in ("ok", "warn"), found["workers"]


def test_role_that_row_level_security_does_not_bind_is_a_failure(settings):
    wrong = settings.model_copy(update={"database_url": settings.system_database_url})
    check = check_database(wrong)
    assert check.verdict == "fail"
    assert "darkroom_api" in check.advice


def test_schema_that_is_not_at_head_names_the_command(settings, database):
    from sqlalchemy import text

    with database.system() as session:
        head = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    try:
        check = check_database(settings)
    finally:
        with database.system() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head})
    assert check.verdict == "fail"
    assert "darkroom migrate" in check.advice


def test_database_that_may_lose_what_it_committed_is_a_failure(settings):
    check = check_database(settings.model_copy(update={"require_durable": True}))
    assert check.verdict == "fail"
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{name}=off" in check.detail


@pytest.mark.parametrize(("required", "verdict"), [(True, "fail"), (False, "warn")])
def test_redis_that_evicts_is_told(settings, valkey, required, verdict):
    with redis.Redis.from_url(valkey.client_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            check = check_redis(settings.model_copy(update={"require_durable": required}))
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert check.verdict == verdict
    assert "allkeys-lru" in check.detail


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("database", "database_url", SecretStr("postgresql://a:b@127.0.0.1:9/darkroom")),
        ("redis", "redis_url", SecretStr("redis://127.0.0.1:9/0")),
    ],
)
def test_part_that_does_not_answer_fails_without_a_traceback(settings, part, field, value):
    check = verdicts(settings.model_copy(update={field: value}))[part]
    assert check.verdict == "fail"
    assert check.advice


def test_store_that_refuses_the_key_fails(settings):
    wrong = settings.model_copy(update={"aws_secret_access_key": SecretStr("wrong-" * 6)})
    check = verdicts(wrong)["object store"]
    assert check.verdict == "fail"
    with pytest.raises(Exception, match=r"refused|403|Denied|SignatureDoesNotMatch"):
        check_store(wrong)


def test_queue_without_a_worker_is_named():
    queues = ["inference", "training", "io"]
    assert workers_verdict({"inference": 2, "training": 1, "io": 1}, queues).verdict == "ok"
    check = workers_verdict({"inference": 2}, queues)
    assert check.verdict == "warn"
    assert "training, io" in check.detail


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path):
    check = check_disk(tmp_path / "not" / "yet")
    assert str(tmp_path) in check.detail
