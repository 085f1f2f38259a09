"""``darkroom tenants locations``: from where the jobs of a tenant may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag
from app.cli.console import note, print_json, print_table
from app.cli.tenants import find_database

if TYPE_CHECKING:
    from app.locations import Locations


def show_locations(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="Its name.", show_default=False)],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOCATION",
            help="s3://bucket/prefix/, in place of all before; repeat for more.",
            show_default=False,
        ),
    ] = None,
    anywhere: Annotated[
        bool, typer.Option("--any", help="Every bucket that the service itself reaches.")
    ] = False,
    nowhere: Annotated[
        bool, typer.Option("--none", help="No bucket: images come by upload alone.")
    ] = False,
    default: Annotated[
        bool, typer.Option("--default", help="As DARKROOM_INPUT_LOCATIONS says.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show from where a tenant's jobs may read, or say so.

    It holds for prefixes, manifests and items of new jobs and of those under way, not for uploads.
    """
    from app.audit.actions import Action
    from app.audit.append import append_entry
    from app.audit.keys import AuditKey
    from app.db.session import Database
    from app.locations import ANYWHERE, parse_locations
    from app.settings import load_settings
    from app.tenants.keys import get_tenant
    from app.tenants.locations import locations_of, set_locations

    if bool(allow) + anywhere + nowhere + default > 1:
        raise typer.BadParameter("say one of --allow, --any, --none and --default")
    chosen: Locations | None = None
    if anywhere or nowhere or allow:
        chosen = ANYWHERE if anywhere else parse_locations(allow or [])
    settings = load_settings(**find_database())
    # Says which setting is missing, before anything is connected.
    assert settings.system_url
    db = Database.from_settings(settings)
    try:
        with db.system() as session:
            tenant = get_tenant(session, name)
            if chosen is not None or default:
                set_locations(session, tenant.id, chosen)
                append_entry(
                    session,
                    AuditKey.derive(settings.key_pepper.get_secret_value()),
                    tenant_id=tenant.id,
                    action=Action.LOCATIONS_CHANGED,
                    target=name,
                    details={
                        "input_locations": list(chosen.prefixes) if chosen is not None else None
                    },
                )
                session.refresh(tenant)
            is_own = tenant.input_locations is not None
            found = locations_of(session, tenant.id, settings.default_locations)
    finally:
        db.close()
    if as_json:
        print_json({"name": name, "input_locations": list(found.prefixes), "is_own": is_own})
        return
    print_table(
        ("tenant", "jobs may read from"),
        [(name, each) for each in found.prefixes or (str(found),)],
        empty="",
    )
    if not is_own:
        note(
            "no locations of its own: DARKROOM_INPUT_LOCATIONS as this environment has it; the "
            "service goes by the environment that it was started in"
        )
