"""``darkroom tenants list | quota``: for whoever runs the service, straight in its database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import GuardedGroup, JsonFlag
from app.cli.console import print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(
    cls=GuardedGroup,
    help="Tenants and their quotas, straight in the database.",
    no_args_is_help=True,
)


def _limit(help_text: str) -> Any:
    return typer.Option(min=0, help=f"{help_text}; 0 for the setting's.", show_default=False)


@app.command("list")
def list_tenants(as_json: JsonFlag = False) -> None:
    """List tenants with their quotas."""
    from sqlalchemy import select

    from app.tenants.tables import Tenant

    with _system() as session:
        names = session.scalars(select(Tenant.name).order_by(Tenant.id)).all()
        rows = [_describe(session, name) for name in names]
    _show(rows, as_json=as_json)


@app.command()
def quota(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="Its name.", show_default=False)],
    max_open_jobs: Annotated[int | None, _limit("Jobs that have not ended")] = None,
    max_open_items: Annotated[int | None, _limit("Items that have not ended")] = None,
    max_stored_bytes: Annotated[
        int | None, _limit("Bytes of uploads, weights and artifacts")
    ] = None,
    max_submissions_per_minute: Annotated[
        int | None, _limit("Jobs submitted within 60 seconds")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a tenant's quotas, or give it limits of its own."""
    from app.tenants.quotas import set_quotas

    given = {
        "max_open_jobs": max_open_jobs,
        "max_open_items": max_open_items,
        "max_stored_bytes": max_stored_bytes,
        "max_submissions_per_minute": max_submissions_per_minute,
    }
    limits = {word: limit or None for word, limit in given.items() if limit is not None}
    with _system() as session:
        if limits:
            set_quotas(session, name, **limits)
        row = _describe(session, name)
    _show([row], as_json=as_json)


@contextmanager
def _system() -> Iterator[Session]:
    from app.db.session import Database
    from app.settings import load_settings

    settings = load_settings(**find_database())
    # Says which setting is missing, before anything is connected.
    assert settings.system_url
    db = Database.from_settings(settings)
    try:
        with db.system() as session:
            yield session
    finally:
        db.close()


def find_database() -> dict[str, str]:
    """The database of the data folder of `darkroom up`, where the environment names none."""
    from app.errors import SettingsError
    from app.stack.postgres import LocalPostgres

    if os.environ.get("DATABASE_URL") or os.environ.get("SYSTEM_DATABASE_URL"):
        return {}
    data = Path(os.environ.get("DARKROOM_DATA") or "darkroom-data")
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
    }


def _describe(session: Session, name: str) -> dict[str, Any]:
    from app.settings import load_settings
    from app.tenants.keys import get_tenant
    from app.tenants.quotas import Quotas, as_dict, quotas_of

    tenant = get_tenant(session, name)
    quotas = quotas_of(session, tenant.id, Quotas.from_settings(load_settings(**find_database())))
    return {"id": tenant.id, "name": tenant.name, **as_dict(quotas)}


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    print_table(
        ("tenant", "id", "open jobs", "open items", "stored bytes", "submissions a minute"),
        [(row["name"], row["id"], *(f"{row[word]:,}" for word in list(row)[2:])) for row in rows],
        spare=("id",),
        empty="no tenants",
    )
