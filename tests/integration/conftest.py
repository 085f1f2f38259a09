"""What these tests share: a second database, an application, folders, settings for plans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.db.session import Database
from app.queues.names import Queue
from app.settings import Settings
from app.stack.postgres import LocalPostgres
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.api_client import Api, make_key
from tests.doors import worker_inside
from tests.factories import make_tenant
from tests.local_parts import build_database, scratch_folder
from tests.plans import BUCKET
from tests.races import Race, racing
from tests.receiver import Receiver
from tests.relay import Bells
from tests.webhooks import LOCAL, SEALING_KEYS
from worker.process import WorkerProcess


@pytest.fixture(scope="session")
def second_database(postgres: LocalPostgres) -> Iterator[Database]:
    """A database that only tests of this folder's own kind write to, one at a time."""
    database = Database(*build_database(postgres, "quiet"), pool_size=10)
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
def data_dir() -> Iterator[Path]:
    """A data folder of this test alone."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def api(app: Any, database: Database, settings: Settings, tenant_id: str) -> Api:
    """The tenant's view of the module's application."""
    return Api(app, make_key(database, settings, tenant_id))


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


@pytest.fixture
def process(settings: Settings, quiet: Database) -> Iterator[WorkerProcess]:
    """A worker's inside that looks at its leases all the time."""
    fast = settings.model_copy(update={"heartbeat_seconds": 0.05, "max_kills": 3})
    process = worker_inside(fast, Queue.IO, quiet)
    process.heartbeat.start()
    yield process
    process.stopping.set()
    process.db = quiet
    process.heartbeat.close()


@pytest.fixture
def bells(quiet: Database, settings: Settings, valkey: LocalValkey) -> Iterator[Bells]:
    """A relay over the second database and an empty Valkey."""
    bells = Bells(quiet, settings, valkey.client_url)
    bells.redis.flushdb()
    yield bells
    bells.close()


@pytest.fixture
def local(settings: Settings) -> Settings:
    """Settings that let webhooks go to this machine."""
    return settings.model_copy(
        update={"webhook_hosts": ",".join(LOCAL), "sealing_keys": SEALING_KEYS}
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks that answers 200."""
    with Receiver() as receiver:
        yield receiver
