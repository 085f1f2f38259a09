"""What is built on local parts that run: a migrated database, and settings that name all three."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from app.db.migrate import upgrade
from app.db.roles import API_ROLE, SYSTEM_ROLE, ensure_roles
from app.settings import Settings, load_settings
from app.stack.postgres import DATABASE_NAME, LocalPostgres
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey

#: What further databases are copied from; nobody else connects to it.
_MIGRATED = "migrated"


class Urls(NamedTuple):
    """A database's two doors, each with its role's password."""

    api: str
    system: str


def build_database(
    postgres: LocalPostgres, name: str = DATABASE_NAME, revision: str = "head"
) -> Urls:
    """Make the roles and the database, and migrate it; nothing where that was done before.

    A PostgreSQL that gets databases beside ``darkroom`` runs the migrations once for all of them.
    """
    if revision == "head" and name not in (DATABASE_NAME, _MIGRATED):
        build_database(postgres, _MIGRATED)
        _copy_database(postgres, _MIGRATED, name)
    secrets = postgres.secrets
    ensure_roles(
        postgres.admin_url,
        name,
        api_password=secrets.api_password,
        system_password=secrets.system_password,
    )
    urls = Urls(
        postgres.url(API_ROLE, secrets.api_password, name),
        postgres.url(SYSTEM_ROLE, secrets.system_password, name),
    )
    upgrade(urls.system, revision)
    return urls


def _copy_database(postgres: LocalPostgres, old: str, new: str) -> None:
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (new,)).fetchone():
            return
        names = sql.Identifier(new), sql.Identifier(old), sql.Identifier(SYSTEM_ROLE)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(*names))


def parts_settings(
    urls: Urls, postgres: LocalPostgres, valkey: LocalValkey, s3: LocalS3, **more: Any
) -> Settings:
    """Settings that point at the three parts; ``more`` are further ones, by field name."""
    return load_settings(
        DATABASE_URL=urls.api,
        SYSTEM_DATABASE_URL=urls.system,
        REDIS_URL=valkey.url,
        S3_ENDPOINT_URL=s3.endpoint_url,
        AWS_ACCESS_KEY_ID=s3.access_key_id,
        AWS_SECRET_ACCESS_KEY=s3.secret_access_key,
        key_pepper=postgres.secrets.key_pepper,
        sealing_keys=postgres.secrets.sealing_keys,
        # All tests come from one address, and many try wrong keys.
        **{"max_failed_authentications_per_minute": 1_000_000, **more},
    )


@contextmanager
def scratch_folder(prefix: str = "darkroom-folder-") -> Iterator[Path]:
    """A folder that goes with the block; PostgreSQL's account may pass through it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
