"""``darkroom tenants create | key | list | quota``, straight in the service's database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import GuardedGroup, JsonFlag
from app.cli.console import note, print_json, print_table, say

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.settings import Settings
    from app.tenants.keys import NewKey
    from app.tenants.quotas import Quotas
    from app.tenants.tables import Tenant

_COLUMNS = {
    "max_open_jobs": "open jobs",
    "max_open_items": "open items",
    "max_stored_bytes": "stored bytes",
    "max_submissions_per_minute": "submissions a minute",
    "max_training_minutes": "training minutes",
}
#: Marks a limit that the tenant has from the settings.
_BY_DEFAULT = "*"

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Its name.", show_default=False)]

app = typer.Typer(
    cls=GuardedGroup,
    help="Tenants, their admin keys and quotas, straight in the database.",
    no_args_is_help=True,
)


def _limit(help_text: str) -> Any:
    # A short word for the value, or the names of the options are cut in 80 columns.
    return typer.Option(
        min=0, metavar="N", help=f"{help_text}; 0 for the setting's.", show_default=False
    )


@app.command()
def create(name: TenantName, as_json: JsonFlag = False) -> None:
    """Make a tenant and its first admin key. The key is shown once.

    Needs SYSTEM_DATABASE_URL and the DARKROOM_KEY_PEPPER of the service, as `key` does; both are
    found where `darkroom up` keeps its data.
    """
    from app.tenants.admin_keys import open_tenant

    with _system() as (session, settings):
        made = open_tenant(session, name, settings.key_pepper.get_secret_value())
    _show_once(name, made, as_json=as_json)
    if not as_json:
        note(
            f"its jobs may read from where DARKROOM_INPUT_LOCATIONS says; see `darkroom tenants "
            f"locations {name}`, and --none or --allow of it"
        )


@app.command()
def key(name: TenantName, as_json: JsonFlag = False) -> None:
    """Make a further admin key of a tenant, whose own may be lost. It is shown once.

    Keys that are there stay as they are: revoke those that are lost with `darkroom keys revoke`.
    """
    from app.audit.actions import OPERATOR
    from app.tenants.admin_keys import create_admin_key
    from app.tenants.keys import get_tenant

    with _system() as (session, settings):
        tenant_id = get_tenant(session, name).id
        pepper = settings.key_pepper.get_secret_value()
        made = create_admin_key(session, tenant_id, name=OPERATOR, pepper=pepper)
    _show_once(name, made, as_json=as_json)


@app.command("list")
def list_tenants(as_json: JsonFlag = False) -> None:
    """List tenants with their quotas."""
    from sqlalchemy import select

    from app.tenants.quotas import Quotas
    from app.tenants.tables import Tenant

    with _system() as (session, settings):
        defaults = Quotas.from_settings(settings)
        tenants = session.scalars(select(Tenant).order_by(Tenant.id))
        rows = [_describe(tenant, defaults) for tenant in tenants]
    _show(rows, as_json=as_json)


@app.command()
def quota(
    name: TenantName,
    max_open_jobs: Annotated[int | None, _limit("Jobs that have not ended")] = None,
    max_open_items: Annotated[int | None, _limit("Items that have not ended")] = None,
    max_stored_bytes: Annotated[
        int | None, _limit("Bytes of uploads, weights and artifacts")
    ] = None,
    max_submissions_per_minute: Annotated[
        int | None, _limit("Jobs submitted within 60 seconds")
    ] = None,
    max_training_minutes: Annotated[
        int | None, _limit("Minutes of fine-tuning within 30 days")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a tenant's quotas, or give it limits of its own."""
    from app.audit.actions import Action
    from app.audit.append import append_entry
    from app.audit.keys import AuditKey
    from app.tenants.keys import get_tenant
    from app.tenants.quotas import Quotas, set_quotas

    given = {
        "max_open_jobs": max_open_jobs,
        "max_open_items": max_open_items,
        "max_stored_bytes": max_stored_bytes,
        "max_submissions_per_minute": max_submissions_per_minute,
        "max_training_minutes": max_training_minutes,
    }
    limits = {word: limit or None for word, limit in given.items() if limit is not None}
    with _system() as (session, settings):
        tenant = get_tenant(session, name)
        if limits:
            set_quotas(session, name, **limits)
            session.refresh(tenant)
            append_entry(
                session,
                AuditKey.derive(settings.key_pepper.get_secret_value()),
                tenant_id=tenant.id,
                action=Action.QUOTA_CHANGED,
                target=name,
                details=limits,
            )
        row = _describe(tenant, Quotas.from_settings(settings))
    _show([row], as_json=as_json)


@contextmanager
def _system() -> Iterator[tuple[Session, Settings]]:
    """A system session, and the settings as this environment says them."""
    from app.db.session import Database
    from app.settings import load_settings

    settings = load_settings(**find_database())
    # Says which setting is missing, before anything is connected.
    assert settings.system_url
    db = Database.from_settings(settings)
    try:
        with db.system() as session:
            yield session, settings
    finally:
        db.close()


def find_database() -> dict[str, str]:
    """The database of the data folder of `darkroom up`, where the environment names none."""
    from app.errors import SettingsError
    from app.settings import read_environment
    from app.stack.postgres import LocalPostgres

    environ = read_environment()
    if environ.get("DATABASE_URL") or environ.get("SYSTEM_DATABASE_URL"):
        return {}
    data = data_folder()
    try:
        port = int((data / "postgres.port").read_text())
    except (OSError, ValueError):
        raise SettingsError(
            "no database is named: set DATABASE_URL and SYSTEM_DATABASE_URL, or DARKROOM_DATA to "
            "the folder of a `darkroom up` that runs"
        ) from None
    postgres = LocalPostgres(data, port=port)
    return {
        "DATABASE_URL": postgres.url("darkroom_api", postgres.secrets.api_password),
        "SYSTEM_DATABASE_URL": postgres.url("darkroom_system", postgres.secrets.system_password),
        "key_pepper": environ.get("DARKROOM_KEY_PEPPER") or postgres.secrets.key_pepper,
        "sealing_keys": environ.get("DARKROOM_SEALING_KEYS") or postgres.secrets.sealing_keys,
    }


def data_folder() -> Path:
    """The data folder of `darkroom up`, as this environment or the present folder name it."""
    return Path(os.environ.get("DARKROOM_DATA") or "darkroom-data")


def _show_once(tenant: str, made: NewKey, *, as_json: bool) -> None:
    row = made.row
    if as_json:
        shown = {"tenant": tenant, "tenant_id": row.tenant_id, "id": made.id, "name": row.name}
        made_at = row.created_at.isoformat()
        print_json({**shown, "scopes": row.scopes, "created_at": made_at, "text": made.text})
        return
    say(made.text)
    note(f"{made.id}, scope admin of {tenant}: keep it now, it is not shown again")


def _describe(tenant: Tenant, defaults: Quotas) -> dict[str, Any]:
    limits = asdict(defaults)
    own = {name: getattr(tenant, name) for name in limits if getattr(tenant, name) is not None}
    return {"id": tenant.id, "name": tenant.name, **limits, **own, "own": list(own)}


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return

    def cell(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:,}{'' if name in row['own'] else _BY_DEFAULT}"

    print_table(
        ("tenant", "id", *_COLUMNS.values()),
        [(row["name"], row["id"], *(cell(row, name) for name in _COLUMNS)) for row in rows],
        # Their words are longer than the numbers below them: both fit into 80 columns so.
        wrap=("tenant", "submissions a minute", "training minutes"),
        spare=("id",),
        empty="no tenants",
    )
    if any(len(row["own"]) < len(_COLUMNS) for row in rows):
        note(
            f"{_BY_DEFAULT} no limit of its own: the setting as this environment has it; the "
            "service goes by the environment that it was started in"
        )
