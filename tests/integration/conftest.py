"""A second database for tests of what looks at every tenant's rows: dispatcher and sweeper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from app.db.migrate import upgrade
from app.db.roles import API_ROLE, SYSTEM_ROLE, ensure_roles
from app.db.session import Database
from app.stack.postgres import LocalPostgres


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
        session.execute(text("TRUNCATE jobs, items, workers CASCADE"))
    return second_database
