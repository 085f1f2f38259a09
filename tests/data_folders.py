"""Data folders with real parts, as `darkroom up` makes them, for tests that move them about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.db.roles import API_ROLE, SYSTEM_ROLE
from app.db.session import Database
from app.settings import Settings
from app.stack.locks import FolderLock
from app.stack.postgres import LocalPostgres
from app.stack.prepare import CLIENT_FILE, prepare_client, prepare_database
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.local_parts import Urls, parts_settings


@dataclass(frozen=True, slots=True)
class Served:
    """A data folder whose parts run."""

    settings: Settings
    db: Database
    objects: ObjectStore
    #: The key that the command line uses.
    key: str


@contextmanager
def served(data_dir: Path) -> Iterator[Served]:
    """Hold the folder and run its three parts, as `darkroom up` does, until the block ends."""
    with ExitStack() as cleanup:
        postgres, valkey, s3 = LocalPostgres(data_dir), LocalValkey(data_dir), LocalS3(data_dir)
        lock = FolderLock(data_dir)
        lock.acquire(patience_seconds=0)
        cleanup.callback(lock.release)
        for part in (postgres, valkey, s3):
            cleanup.enter_context(part)
        secrets = postgres.secrets
        urls = Urls(
            postgres.url(API_ROLE, secrets.api_password),
            postgres.url(SYSTEM_ROLE, secrets.system_password),
        )
        prepare_database(url=urls.api, system_url=urls.system, admin_url=postgres.admin_url)
        prepare_client(
            data_dir,
            address="http://127.0.0.1:1",
            url=urls.api,
            system_url=urls.system,
            pepper=secrets.key_pepper,
            own_database=True,
        )
        settings = parts_settings(
            urls,
            postgres,
            valkey,
            s3,
            cache_dir=data_dir / "cache",
            sweep_seconds=0.2,
            ring_again_seconds=1,
            dispatch_seconds=0.05,
            database_pool=5,
        )
        db = cleanup.enter_context(closing(Database.from_settings(settings)))
        key = json.loads((data_dir / CLIENT_FILE).read_text())["key"]
        yield Served(settings, db, ObjectStore.from_settings(settings), key)
