"""``darkroom keys create | rotate | list | revoke | budget``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import note, print_json, print_table, say
from app.cli.limits import read_seconds
from app.cli.words import ago_text, day_or_minute

if TYPE_CHECKING:
    from app.client.values import Key

app = typer.Typer(
    cls=GuardedGroup, help="Make, rotate, list and revoke API keys.", no_args_is_help=True
)


@app.command()
def create(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the key is for.", show_default=False)
    ],
    scope: Annotated[
        list[str],
        typer.Option(
            help="jobs:read, jobs:write, models:read, models:write, labels:write (guards nothing "
            "yet), exports or admin; repeat for more.",
            show_default=False,
        ),
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, help="Life in days; without it the key does not expire."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown once."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with connect(context) as darkroom:
        key = darkroom.keys.create(name, scope, expires_at=expires_at)
    _show_once(key, as_json=as_json)


@app.command()
def rotate(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="key_…", show_default=False)],
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long the old key serves on: 2h, 1d; 0 ends it at once."
        ),
    ] = "1d",
    as_json: JsonFlag = False,
) -> None:
    """Make a key's successor, of the same name and scopes. It is shown once."""
    seconds = read_seconds(overlap, "--overlap")
    with connect(context) as darkroom:
        key = darkroom.keys.rotate(key_id, overlap_seconds=seconds)
    _show_once(key, as_json=as_json)
    if not as_json:
        note(f"{key_id} {f'serves for {overlap} more' if seconds else 'has ended'}")


@app.command("list")
def list_keys(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List keys, without their secrets."""
    with connect(context) as darkroom:
        keys = list(darkroom.keys.list())
    if as_json:
        print_json([key.raw for key in keys])
        return
    now = datetime.now(UTC)
    print_table(
        ("key", "name", "scopes", "made", "last used", "state"),
        [
            (
                key.id,
                key.name,
                " ".join(key.scopes),
                ago_text(key.created_at),
                ago_text(key.last_used_at) if key.last_used_at else "never",
                "revoked"
                if key.revoked_at
                else "expired"
                if key.expires_at and key.expires_at <= now
                else f"until {day_or_minute(key.expires_at, now)}"
                if key.expires_at
                else "live",
            )
            for key in keys
        ],
        wrap=("scopes", "state"),
        spare=("last used", "made"),
        empty="no keys",
    )


@app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="key_…", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """End a key, at once or within two seconds."""
    with connect(context) as darkroom:
        darkroom.keys.revoke(key_id)
    if as_json:
        print_json({"id": key_id, "revoked": True})
        return
    say(f"{key_id} revoked")


@app.command()
def budget(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="key_…", show_default=False)],
    items_per_day: Annotated[
        int | None,
        typer.Option(
            min=0, help="Images a day (UTC) from now on; 0 for any number.", show_default=False
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how many images a day a key may have answered, or set it."""
    with connect(context) as darkroom:
        found = (
            darkroom.keys.budget(key_id)
            if items_per_day is None
            else darkroom.keys.set_budget(key_id, items_per_day or None)
        )
    most = found.max_items_per_day
    text = (
        "any number of images"
        if most is None
        else f"{most:,} images a day, {found.items_today:,} today"
    )
    if as_json:
        print_json(found.raw)
        return
    say(f"{key_id}: {text}")


def _show_once(key: Key, *, as_json: bool) -> None:
    if as_json:
        print_json(key.raw)
        return
    say(key.text or key.id)
    note(f"{key.id}: keep it now, it is not shown again")
