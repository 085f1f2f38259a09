"""Real parts for the tests: one PostgreSQL, one Valkey and one S3 server per session.

They start on first use. Where a part is not installed, a laptop skips the tests that need it;
under ``CI=true`` that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.db.session import Database
from app.ids import new_id
from app.settings import Settings
from app.stack.part import Part
from app.stack.postgres import LocalPostgres
from app.stack.processes import PartMissingError
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_tenant
from tests.api_client import make_app
from tests.canaries import CANARIES, watch
from tests.local_parts import build_database, parts_settings, scratch_folder

P = TypeVar("P", bound=Part)

watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test in whose output, or in a refusal to it, a secret stands."""
    report = yield
    if report.when == "teardown":
        for name, text in report.sections:
            CANARIES.look(text, name)
        if CANARIES.leaks:
            report.outcome = "failed"
            report.longrepr = "\n".join(sorted(set(CANARIES.leaks)))
            CANARIES.leaks.clear()
    return report


def _serve(part: P) -> Iterator[P]:
    try:
        part.start()
    except PartMissingError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield part
    finally:
        part.stop()


@pytest.fixture(scope="session")
def stack_dir() -> Iterator[Path]:
    """The session's data folder, open to pass through: PostgreSQL may run as another user."""
    with scratch_folder("darkroom-test-") as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres(stack_dir: Path) -> Iterator[LocalPostgres]:
    """A running PostgreSQL without any database of ours."""
    yield from _serve(LocalPostgres(stack_dir, fast=True))


@pytest.fixture(scope="session")
def valkey(stack_dir: Path) -> Iterator[LocalValkey]:
    """A running, empty Valkey; a test that needs it empty again flushes it."""
    yield from _serve(LocalValkey(stack_dir))


@pytest.fixture(scope="session")
def s3(stack_dir: Path) -> Iterator[LocalS3]:
    """A running S3 endpoint with one empty bucket, ``darkroom``."""
    yield from _serve(LocalS3(stack_dir))


@pytest.fixture(scope="session")
def canaries(
    postgres: LocalPostgres, stack_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """At the end no secret of the session stands in a log or a table."""
    yield
    logs = (folder.rglob("*.log") for folder in (stack_dir, tmp_path_factory.getbasetemp()))
    CANARIES.look_through_files(path for found in logs for path in found if path.is_file())
    CANARIES.look_through_databases(postgres)
    leaks = "\n".join(sorted(set(CANARIES.leaks)))
    CANARIES.leaks.clear()
    assert not leaks, leaks


@pytest.fixture(scope="session")
def settings(
    postgres: LocalPostgres, valkey: LocalValkey, s3: LocalS3, stack_dir: Path, canaries: None
) -> Settings:
    """Settings that point at the session's parts, whose database the migrations have built."""
    return parts_settings(
        build_database(postgres),
        postgres,
        valkey,
        s3,
        cache_dir=stack_dir / "cache",
        lease_seconds=2,
        heartbeat_seconds=0.5,
        sweep_seconds=0.2,
        ring_again_seconds=1,
        dispatch_seconds=0.05,
        database_pool=5,
        # This PostgreSQL has fsync off.
        require_durable=False,
    )


@pytest.fixture(scope="session")
def database(settings: Settings) -> Iterator[Database]:
    """The session's database with both doors open; rows stay, so a test makes its own tenant."""
    database = Database.from_settings(settings)
    yield database
    database.close()


@pytest.fixture
def tenant_id(database: Database) -> str:
    """A tenant of this test alone."""
    with database.system() as session:
        return create_tenant(session, new_id("test").replace("_", "-")).id


@pytest.fixture(scope="session")
def app(settings: Settings, objects: ObjectStore) -> Any:
    """The application; whoever wants other settings makes its own."""
    return make_app(settings, objects)


@pytest.fixture(scope="session")
def objects(settings: Settings) -> ObjectStore:
    """The session's object store; keys start with a tenant, so tests do not meet."""
    return ObjectStore.from_settings(settings)
