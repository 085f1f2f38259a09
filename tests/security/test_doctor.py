"""``darkroom doctor --security`` finds what was made weak, and only that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr
from typer.testing import CliRunner

from app.cli.checks import Check
from app.cli.main import app
from app.cli.security import check_security
from app.cli.security_parts import check_redis
from app.db.session import Database
from app.models.weights import VERSION_KEYS
from app.sealing.columns import count_column
from app.settings import Settings
from app.stack.postgres import DATABASE_NAME, LocalPostgres
from app.stack.processes import free_port
from app.stack.valkey import find_valkey_binary
from app.storage.s3 import ObjectStore
from app.tenants.tables import ApiKey
from tests.api_client import make_key
from tests.factories import register_weights
from tests.jobs import make_old
from tests.unit.pictures import small_spec

SECRET = "correct-horse-battery-staple-and-more"


def look(settings: Settings, data_dir: Path | None = None, **changed: Any) -> list[Check]:
    changed = {
        name: SecretStr(value) if isinstance(getattr(settings, name), SecretStr) else value
        for name, value in changed.items()
    }
    return list(check_security(settings.model_copy(update=changed), data_dir))


def found(checks: list[Check], name: str) -> tuple[str, str]:
    """The worst verdict about one thing, and all that is said of it."""
    mine = [check for check in checks if check.name == name]
    order = ["ok", "warn", "fail"]
    worst = max((check.verdict for check in mine), key=order.index)
    return worst, " ".join(f"{check.detail} {check.advice}" for check in mine)


@pytest.fixture
def guarded_port(tmp_path: Path) -> Iterator[int]:
    """The port of a Valkey that asks for the password SECRET."""
    port = free_port("127.0.0.1")
    words = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", SECRET, "--save", ""]
    with subprocess.Popen(
        [find_valkey_binary(), *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert any("Ready to accept connections" in line for line in server.stdout)
            yield port
        finally:
            server.terminate()


@pytest.fixture
def superuser(postgres: LocalPostgres) -> Iterator[psycopg.Connection[Any]]:
    url = postgres.url("postgres", postgres.secrets.admin_password, DATABASE_NAME)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_parts_as_they_are_made_are_not_weak(settings: Settings, database: Database) -> None:
    checks = look(settings)
    for name in ("secrets", "files", "database", "tables", "redis", "object store", "limits"):
        assert found(checks, name)[0] == "ok", found(checks, name)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("secrets", {"key_pepper": "short"}, "DARKROOM_KEY_PEPPER"),
        ("secrets", {"key_pepper": "ab" * 20}, "can be guessed"),
        ("secrets", {"sealing_keys": ""}, "no sealing key"),
        ("secrets", {"sealing_keys": f"b:{'A' * 43},a:{'B' * 42}A"}, "still holds a"),
        ("object store", {"s3_endpoint_url": "http://10.1.2.3:9000"}, "without TLS"),
        ("redis", {"redis_url": "redis://10.255.255.1:1/0?socket_connect_timeout=0.1"}, "TLS"),
        (
            "redis",
            {"redis_url": "rediss://redis.example:1/0?ssl_cert_reqs=none"},
            "certificate",
        ),
        ("api", {"api_host": "0.0.0.0"}, "keys pass in clear"),
        ("api", {"log_level": "DEBUG"}, "DEBUG"),
        ("limits", {"archive_max_ratio": 100_000}, "DARKROOM_ARCHIVE_MAX_RATIO is 100,000"),
        ("limits", {"max_image_pixels": 10**9}, "gigabytes"),
        ("webhooks", {"webhook_private_networks": "10.0.0.0/8"}, "10.0.0.0/8"),
    ],
)
def test_weak_setting_is_told_with_what_to_do(
    settings: Settings, name: str, changed: dict[str, Any], words: str
) -> None:
    verdict, text = found(look(settings, **changed), name)
    assert verdict in ("warn", "fail")
    assert words in text


def test_way_to_a_database_elsewhere_must_check_who_answers(settings: Settings) -> None:
    away = "postgresql://darkroom_api:word@192.0.2.1:1/darkroom?connect_timeout=1"
    for mode, weak in (("prefer", True), ("require", True), ("verify-full", False)):
        _, text = found(look(settings, database_url=f"{away}&sslmode={mode}"), "database")
        assert ("without a checked TLS connection" in text) is weak


def test_redis_is_weak_without_a_password_and_not_where_it_stands_in_the_query(
    settings: Settings, guarded_port: int
) -> None:
    place = f"127.0.0.1:{guarded_port}/0"
    urls = (
        f"redis://:{SECRET}@{place}",
        f"redis://{place}?password={SECRET}",
        f"redis://{place}?socket_timeout=3&username=default&password={SECRET}",
    )

    def look_at_redis() -> list[str]:
        redis_urls = [{"redis_url": SecretStr(url)} for url in urls]
        looks = [check_redis(settings.model_copy(update=one)) for one in redis_urls]
        return [check.detail for checks in looks for check in checks]

    assert look_at_redis() == []
    with redis.Redis.from_url(urls[0]) as client:
        client.config_set("requirepass", "")
    weak = look_at_redis()
    assert len(weak) == len(urls)
    assert all("Redis asks for no password" in detail for detail in weak)


def test_role_that_may_too_much_is_told(
    settings: Settings, postgres: LocalPostgres, superuser: psycopg.Connection[Any]
) -> None:
    assert settings.system_database_url is not None
    system = settings.system_database_url.get_secret_value()
    verdict, text = found(look(settings, database_url=system), "database")
    assert verdict == "fail"
    assert "no row level security" in text
    assert "owns tables" in text
    superuser.execute("GRANT darkroom_system TO darkroom_api")
    try:
        assert "is also darkroom_system" in found(look(settings), "database")[1]
    finally:
        superuser.execute("REVOKE darkroom_system FROM darkroom_api")


def test_table_whose_rows_lie_open_is_named(
    settings: Settings, superuser: psycopg.Connection[Any]
) -> None:
    superuser.execute("ALTER TABLE items NO FORCE ROW LEVEL SECURITY")
    try:
        verdict, text = found(look(settings), "tables")
    finally:
        superuser.execute("ALTER TABLE items FORCE ROW LEVEL SECURITY")
    assert verdict == "fail"
    assert "items" in text


def test_secret_that_others_may_read_is_named(settings: Settings, tmp_path: Path) -> None:
    for name in ("secrets.json", "client.json"):
        (tmp_path / name).write_text("{}")
        (tmp_path / name).chmod(0o600)
    assert found(look(settings, tmp_path), "files")[0] == "ok"
    (tmp_path / "client.json").chmod(0o640)
    verdict, text = found(look(settings, tmp_path), "files")
    assert verdict == "fail"
    assert "client.json" in text
    assert "secrets.json" not in text


def test_keys_that_nobody_uses_are_counted(
    settings: Settings, database: Database, tenant_id: str
) -> None:
    key_id = "key_" + make_key(database, settings, tenant_id).split("_")[1]
    assert "scope admin never expire" in found(look(settings), "keys")[1]
    before = found(look(settings), "keys")[1]
    make_old(database, ApiKey, "created_at", 24 * 100, key_id)
    after = found(look(settings), "keys")[1]
    assert before != after
    assert "not used for 90 days" in after


def test_weights_in_clear_are_counted_and_the_setting_that_refuses_them_is_named(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    with database.system() as session:
        in_clear = count_column(session, VERSION_KEYS).in_clear
    for sealed_only, words in (
        # Tests on the same database may have left some.
        (False, f"{in_clear:,} model versions lie" if in_clear else "DARKROOM_SEALED_ONLY=on for"),
        (True, "refuses them" if in_clear else "nothing weak found"),
    ):
        assert words in found(look(settings, sealed_only=sealed_only), "weights")[1]
    objects.ensure_bucket(settings.bucket)
    register_weights(database, objects, settings.bucket, tenant_id, "old", small_spec(), b"plain")
    for sealed_only, words in (
        (False, "then set DARKROOM_SEALED_ONLY=on"),
        (True, "refuses them"),
    ):
        verdict, text = found(look(settings, sealed_only=sealed_only), "weights")
        assert verdict == "warn"
        assert f"{in_clear + 1:,} model versions lie in clear" in text
        assert words in text


def test_root_is_told() -> None:
    if os.geteuid() != 0:
        pytest.skip("this account is not root")
    from app.cli.security import _check_account

    assert [check.verdict for check in _check_account()] == ["warn"]


def test_command_fails_on_what_is_open_and_never_shows_a_secret(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port("127.0.0.1")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://darkroom_api:{SECRET}@127.0.0.1:{port}/x")
    monkeypatch.setenv("SYSTEM_DATABASE_URL", f"postgresql://s:{SECRET}@127.0.0.1:{port}/x")
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@127.0.0.1:{port}/0")
    monkeypatch.setenv("DARKROOM_KEY_PEPPER", SECRET)
    monkeypatch.setenv("DARKROOM_SEALING_KEYS", f"bad:{SECRET}")
    for words in ([], ["--json"]):
        shown = CliRunner().invoke(app, ["doctor", "--security", *words])
        assert shown.exit_code == 1, shown.output
        assert "sealing key number 1 is not valid" in shown.output
        assert "not looked at" in shown.output
        assert SECRET not in shown.output
