"""Code and data of different versions: newer code migrates, older code refuses to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.api.app import create_app
from app.cli.exits import Exit
from app.cli.main import app
from app.db.migrate import upgrade
from app.db.roles import API_ROLE
from app.db.schema import SchemaError, known_revisions, newest_revision, require_schema
from app.db.session import Database
from app.settings import Settings
from app.stack import up as up_module
from app.stack.backup import run_backup
from app.stack.postgres import ADMIN, DATABASE_NAME, LocalPostgres
from app.stack.readiness import Readiness
from app.stack.restore import run_restore
from app.stack.supervisor import Supervisor
from app.stack.up import UpOptions, run_up
from tests.local_parts import build_database, scratch_folder
from tests.nursery import Ended, run_forked
from tests.service import environment

#: Written by a release that nobody has made yet.
NEWER = "0099"
REFUSAL = (
    f"the data were written by a newer Darkroom (schema {NEWER}, this one knows up to "
    f"{newest_revision()}): upgrade"
)
#: A revision that has jobs and items, and is not the newest.
OLDER = "0005"


@pytest.fixture(scope="module")
def versioned(settings: Settings, postgres: LocalPostgres) -> Iterator[Settings]:
    """Settings that name a database of this module alone, which claims to be of another version."""
    urls = build_database(postgres, "versioned")
    names = {"database_url": urls.api, "system_database_url": urls.system}
    yield Settings.model_validate(settings.model_dump() | names)
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE versioned WITH (FORCE)")


@pytest.fixture
def newer(versioned: Settings) -> Iterator[Settings]:
    yield from _at(versioned, NEWER)


@pytest.fixture
def older(versioned: Settings) -> Iterator[Settings]:
    yield from _at(versioned, known_revisions()[1])


def _at(settings: Settings, revision: str) -> Iterator[Settings]:
    db = Database.from_settings(settings)
    statement = text("UPDATE alembic_version SET version_num = :revision")
    with db.system() as session:
        session.execute(statement, {"revision": revision})
    try:
        yield settings
    finally:
        with db.system() as session:
            session.execute(statement, {"revision": newest_revision()})
        db.close()


def test_schema_of_this_code_is_accepted_by_the_role_of_api_and_workers(
    versioned: Settings,
) -> None:
    db = Database(versioned.database_url.get_secret_value())
    try:
        require_schema(db)
    finally:
        db.close()


def test_migrations_refuse_a_schema_that_they_do_not_know(newer: Settings) -> None:
    with pytest.raises(SchemaError) as refused:
        upgrade(newer.system_url)
    assert refused.value.detail == REFUSAL
    done = CliRunner().invoke(app, ["migrate"], env=environment(newer))
    assert done.exit_code == Exit.FAILED
    assert REFUSAL in done.stderr
    assert "[schema_too_new]" in done.stderr


def test_api_does_not_serve_a_newer_schema(
    newer: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(newer).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SchemaError, match="upgrade"):
        create_app()


@pytest.mark.parametrize(
    ("module", "event"),
    [
        (["app.dispatch.run"], "dispatcher_not_started"),
        (["worker.main", "--role", "io"], "worker_not_started"),
    ],
)
def test_dispatcher_and_workers_do_not_start_on_a_newer_schema(
    module: list[str], event: str, newer: Settings
) -> None:
    done = start(module, newer)
    assert done.status == 1
    assert event in done.said
    assert REFUSAL in done.said
    assert "Traceback" not in done.said


def test_worker_does_not_start_before_the_migrations(older: Settings) -> None:
    done = start(["worker.main", "--role", "io"], older)
    assert done.status == 1
    assert "run `darkroom migrate`" in done.said


def start(module: list[str], settings: Settings) -> Ended:
    return run_forked(module[0], module[1:], environment(settings))


def test_schema_from_before_anybody_could_read_its_revision_counts_as_older(
    versioned: Settings,
) -> None:
    db = Database.from_settings(versioned)
    try:
        with db.system() as session:
            session.execute(text(f"REVOKE SELECT ON alembic_version FROM {API_ROLE}"))
        with pytest.raises(SchemaError) as refused:
            require_schema(db)
        assert refused.value.code == "schema_too_old"
        upgrade(versioned.system_url)
        require_schema(db)
    finally:
        db.close()


@pytest.fixture(scope="module")
def old_folder() -> Iterator[Path]:
    """A stopped data folder of an older release, with a job and its items in it."""
    with scratch_folder() as folder:
        data_dir = folder / "data"
        with LocalPostgres(data_dir) as postgres:
            build_database(postgres, revision=OLDER)
            admin_url = postgres.url(ADMIN, postgres.secrets.admin_password, DATABASE_NAME)
            with psycopg.connect(admin_url, autocommit=True) as connection:
                connection.execute(
                    """
                    INSERT INTO tenants (id, name) VALUES ('ten_1', 'default');
                    INSERT INTO jobs (id, tenant_id, kind, state, priority, input, options,
                                      metadata, total, succeeded, failed, skipped, cancelled,
                                      seq, sealed_at, ended_at)
                    VALUES ('job_1', 'ten_1', 'predict', 'succeeded', 0, '{}', '{}', '{}',
                            1, 1, 0, 0, 0, 1, now(), now());
                    INSERT INTO items (job_id, ordinal, tenant_id, seq, attempt, custom_id,
                                       source, state, prediction)
                    VALUES ('job_1', 0, 'ten_1', 1, 1, 'a', 'a.png', 'succeeded',
                            '[["cat", 0.5]]');
                    """
                )
        (data_dir / "s3" / "objects" / "darkroom").mkdir(parents=True)
        yield data_dir


def test_up_and_restore_bring_the_data_of_an_older_release_up_to_date(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, restored = old_folder.with_name("backup"), old_folder.with_name("restored")
    manifest = run_backup(backup, old_folder, bucket="darkroom", say=lambda _: None)
    assert manifest.schema == OLDER
    run_restore(backup, restored, force=False, say=lambda _: None)
    assert_has_its_job(restored)
    bring_up(old_folder, monkeypatch)
    assert_has_its_job(old_folder)


def assert_has_its_job(data_dir: Path) -> None:
    with admin_of(data_dir) as connection:
        found = connection.execute(
            "SELECT version_num, jobs.id, succeeded, prediction FROM alembic_version, jobs, items"
        ).fetchall()
    assert found == [(newest_revision(), "job_1", 1, [["cat", 0.5]])]


def test_up_with_older_code_refuses_and_changes_nothing(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = "UPDATE alembic_version SET version_num = %s WHERE version_num = %s"
    with admin_of(old_folder) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert row is not None
        connection.execute(move, [NEWER, row[0]])
    with pytest.raises(SchemaError) as refused:
        bring_up(old_folder, monkeypatch)
    assert refused.value.detail == REFUSAL
    with pytest.raises(SchemaError):
        run_backup(old_folder.with_name("b"), old_folder, bucket="darkroom", say=lambda _: None)
    assert not old_folder.with_name("b").exists()
    with admin_of(old_folder) as connection:
        assert connection.execute(move, [row[0], NEWER]).rowcount == 1


@contextmanager
def admin_of(data_dir: Path) -> Iterator[psycopg.Connection[Any]]:
    """The database of a stopped folder, as its superuser."""
    with LocalPostgres(data_dir) as postgres:
        url = postgres.url(ADMIN, postgres.secrets.admin_password, DATABASE_NAME)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


def bring_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `darkroom up` with its real parts and without children, until it is ready."""
    monkeypatch.setattr(up_module, "child_specs", lambda **_: [])
    monkeypatch.setattr(Readiness, "is_over", lambda *_: True)
    options = UpOptions(data_dir=data_dir, port=0)
    run_up(options, environ={}, say=lambda _: None, ready=Supervisor.request_stop)
