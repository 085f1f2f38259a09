"""What tests of delivery share: a second database, and settings and keys for plans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from app.db.migrate import upgrade
from app.db.roles import API_ROLE, SYSTEM_ROLE, ensure_roles
from app.db.session import Database
from app.settings import Settings
from app.stack.postgres import LocalPostgres
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.plans import BUCKET
from tests.races import Race, racing


@pytest.fixture(scope="session")
def second_database(postgres: LocalPostgres) -> Iterator[Database]:
    """A database that only tests of this folder's own kind write to, one at a time."""
    secrets = postgres.secrets
    ensure_roles(
        postgres.admin_url,
        "quiet",
        api_password=secrets.api_password,
        system_password=secrets.system_password,
    )
    system_url = postgres.url(SYSTEM_ROLE, secrets.system_password, database="quiet")
    upgrade(system_url)
    url = postgres.url(API_ROLE, secrets.api_password, database="quiet")
    database = Database(url, system_url, pool_size=10)
    yield database
    database.close()


@pytest.fixture
def quiet(second_database: Database) -> Database:
    """The second database without any job, chunk or worker in it."""
    with second_database.system() as session:
        session.execute(
            text("TRUNCATE jobs, items, workers, turns, webhooks, idempotency_keys CASCADE")
        )
    return second_database


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Settings that cut chunks of three items."""
    return settings.model_copy(update={"chunk_items": 3})


@pytest.fixture
def folder(objects: ObjectStore, tenant_id: str) -> str:
    """A prefix of this test alone in a client's bucket."""
    objects.ensure_bucket(BUCKET)
    return f"{tenant_id}/"


@pytest.fixture
def owner(quiet: Database) -> str:
    """A tenant in the second database, where the sweeper sees only this test's jobs."""
    return make_tenant(quiet)


@pytest.fixture
def race(quiet: Database) -> Iterator[Race]:
    """Starts the other side of a race."""
    with racing(quiet) as start:
        yield start
