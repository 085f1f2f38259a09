"""What a fresh data folder needs before the first request: roles, schema, one key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.db.migrate import upgrade
from app.db.roles import ensure_roles
from app.db.session import Database
from app.errors import SettingsError
from app.stack.processes import StackError
from app.tenants.admin_keys import FIRST_TENANT, create_admin_key, ensure_first_key
from app.tenants.tables import Tenant

CLIENT_FILE = "client.json"


def prepare_database(*, url: str, system_url: str, admin_url: str | None) -> None:
    """Make both roles where a superuser's URL is at hand, then bring the schema up to date.

    Raises:
        SettingsError: the URLs do not fit each other, or the schema is newer than this code.
        StackError: the database does not answer.
    """
    if admin_url:
        api, system = conninfo_to_dict(url), conninfo_to_dict(system_url)
        database = system.get("dbname")
        if not database or database != api.get("dbname"):
            raise SettingsError(
                "DATABASE_URL and SYSTEM_DATABASE_URL must name the same database at their end"
            )
        try:
            ensure_roles(
                admin_url,
                str(database),
                api_password=str(api.get("password") or ""),
                system_password=str(system.get("password") or ""),
            )
        except psycopg.OperationalError as error:
            raise StackError(f"PostgreSQL at ADMIN_DATABASE_URL does not serve: {error}") from None
    try:
        upgrade(system_url)
    except OperationalError as error:
        raise StackError(
            f"PostgreSQL at SYSTEM_DATABASE_URL does not serve: {error.orig}; check the address "
            "and that the role darkroom_system exists"
        ) from None


def prepare_client(
    data_dir: Path, *, address: str, url: str, system_url: str, pepper: str, own_database: bool
) -> str | None:
    """Write ``client.json``, from which the command line knows address and key.

    Returns the key's text where it was made now, so that it can be shown this once.
    """
    path = data_dir / CLIENT_FILE
    kept = _read(path)
    made = None
    if not kept.get("key"):
        made = _make_key(url, system_url, pepper, own_database=own_database)
        if made is not None:
            kept["key"] = made
    kept["url"] = address
    _write_private(path, kept)
    return made


def _make_key(url: str, system_url: str, pepper: str, *, own_database: bool) -> str | None:
    db = Database(url, system_url, pool_size=2)
    try:
        made = ensure_first_key(db, pepper)
        if made is not None or not own_database:
            return made
        # The only copy of the first key went with client.json; without another one nobody
        # could ever use the data in this folder again.
        with db.system() as session:
            tenant_id = session.scalars(
                select(Tenant.id).where(Tenant.name == FIRST_TENANT)
            ).one_or_none()
            if tenant_id is None:
                return None
            return create_admin_key(session, tenant_id, name="up", pepper=pepper).text
    finally:
        db.close()


def _read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


def _write_private(path: Path, values: Mapping[str, str]) -> None:
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(values), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
