"""Real parts for the tests: one PostgreSQL, one Valkey and one S3 server per session.

They start on first use. Where a part is not installed, a laptop skips the tests that need it;
under ``CI=true`` that is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from app.db.migrate import upgrade
from app.db.roles import API_ROLE, SYSTEM_ROLE, ensure_roles
from app.db.session import Database
from app.ids import new_id
from app.settings import Settings, load_settings
from app.stack.part import Part
from app.stack.postgres import LocalPostgres
from app.stack.processes import PartMissingError
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_tenant

P = TypeVar("P", bound=Part)


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
    folder = Path(tempfile.mkdtemp(prefix="darkroom-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


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
def settings(
    postgres: LocalPostgres, valkey: LocalValkey, s3: LocalS3, stack_dir: Path
) -> Settings:
    """Settings that point at the session's parts, whose database the migrations have built."""
    secrets = postgres.secrets
    system_url = postgres.url(SYSTEM_ROLE, secrets.system_password)
    ensure_roles(
        postgres.admin_url,
        "darkroom",
        api_password=secrets.api_password,
        system_password=secrets.system_password,
    )
    upgrade(system_url)
    return load_settings(
        DATABASE_URL=postgres.url(API_ROLE, secrets.api_password),
        SYSTEM_DATABASE_URL=system_url,
        REDIS_URL=valkey.url,
        S3_ENDPOINT_URL=s3.endpoint_url,
        AWS_ACCESS_KEY_ID=s3.access_key_id,
        AWS_SECRET_ACCESS_KEY=s3.secret_access_key,
        key_pepper=secrets.key_pepper,
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
def objects(settings: Settings) -> ObjectStore:
    """The session's object store; keys start with a tenant, so tests do not meet."""
    return ObjectStore.from_settings(settings)
