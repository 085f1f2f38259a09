"""``darkroom audit verify | list``: whether the audit log is whole, and what it tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import note, print_json, print_table, say
from app.cli.exits import Exit
from app.cli.words import ago_text, pairs_text

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.audit.chain import Head
    from app.audit.keys import AuditKeys
    from app.audit.verify import Verdict

app = typer.Typer(
    cls=GuardedGroup,
    help="The audit log: read it, and prove that nobody changed it.",
    no_args_is_help=True,
)


@app.command("list")
def list_entries(
    context: typer.Context,
    action: Annotated[
        str | None, typer.Option(help="Only this act, such as key.created.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Only what was done to this.", show_default=False)
    ] = None,
    actor: Annotated[
        str | None, typer.Option(help="Only what this key did, or operator.", show_default=False)
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only from this time on, UTC.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Show who did what; needs a key with the scope admin."""
    from datetime import UTC
    from itertools import islice

    moment = since.replace(tzinfo=since.tzinfo or UTC) if since else None
    with connect(context) as darkroom:
        found = darkroom.audit.list(action=action, target=target, actor=actor, since=moment)
        entries = list(islice(found, limit))
    if as_json:
        print_json([entry.raw for entry in entries])
        return
    print_table(
        ("no.", "when", "actor", "action", "outcome", "target", "from", "details"),
        [
            (
                str(entry.seq or "–"),
                ago_text(entry.at),
                entry.actor,
                entry.action,
                entry.outcome,
                entry.target or "–",
                entry.client_address or "–",
                pairs_text(entry.details) or "",
            )
            for entry in entries
        ],
        wrap=("details", "target"),
        spare=("details", "from", "outcome"),
        empty="no entries",
    )


@app.command()
def verify(
    tenant: Annotated[
        str | None, typer.Option(help="Only this tenant's chain.", show_default=False)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="N:HASH that was printed earlier and must still be in the chain; with --tenant.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Walk every chain of the audit log, straight in the database; exit code 1 where one is broken.

    Needs SYSTEM_DATABASE_URL and DARKROOM_KEY_PEPPER. Prints each chain's head: keep it where the
    database's administrators cannot write, and hand it in with --head the next time.
    """
    if head is not None and tenant is None:
        raise typer.BadParameter("name the tenant whose head it is with --tenant")
    kept = _read_head(head) if head is not None else None
    rows: list[dict[str, Any]] = []
    with _system() as (session, keys):
        for name, tenant_id in _tenants(session, tenant):
            from app.audit.verify import verify_chain

            row = _describe(name, verify_chain(session, keys, tenant_id, kept=kept))
            rows.append(row)
            if not as_json:
                _print(row)
    if as_json:
        print_json(rows)
    elif not rows:
        say("no tenants")
    if any(row["fault"] for row in rows):
        raise typer.Exit(Exit.FAILED)


def _read_head(given: str) -> Head:
    from app.audit.chain import Head

    match = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", given)
    if match is None:
        raise typer.BadParameter("a head is a number, a colon and 64 hex digits", param_hint="head")
    return Head(int(match[1]), bytes.fromhex(match[2]))


def _tenants(session: Session, name: str | None) -> list[tuple[str, str]]:
    from sqlalchemy import select

    from app.tenants.keys import get_tenant
    from app.tenants.tables import Tenant

    if name is not None:
        return [(name, get_tenant(session, name).id)]
    rows = session.execute(select(Tenant.name, Tenant.id).order_by(Tenant.id))
    return [(row.name, row.id) for row in rows]


@contextmanager
def _system() -> Iterator[tuple[Session, AuditKeys]]:
    """A system session that sees one moment, and what the chains were signed with."""
    from app.audit.keys import AuditKeys
    from app.audit.verify import begin_verification
    from app.cli.tenants import find_database
    from app.db.session import Database
    from app.settings import load_settings

    settings = load_settings(**find_database())
    # Both say which setting is missing, before anything is connected.
    assert settings.system_url
    keys = AuditKeys.from_settings(settings)
    db = Database.from_settings(settings)
    try:
        with db.system() as session:
            begin_verification(session)
            yield session, keys
    finally:
        db.close()


def _describe(name: str, verdict: Verdict) -> dict[str, Any]:
    oldest, fault = verdict.oldest_unchained_at, verdict.fault
    return {
        "tenant": name,
        "tenant_id": verdict.tenant_id,
        "good": verdict.good,
        "head": str(verdict.head) if verdict.head else None,
        "unchained": verdict.unchained,
        "oldest_unchained_at": oldest.isoformat() if oldest else None,
        "late": verdict.late,
        "fault": {
            "kind": fault.kind.value,
            "seq": fault.seq,
            "entry_id": fault.entry_id,
            "detail": fault.detail,
        }
        if fault
        else None,
    }


def _print(row: dict[str, Any]) -> None:
    fault = row["fault"]
    if fault:
        where = " ".join(
            filter(None, (f"number {fault['seq']}" if fault["seq"] else "", fault["entry_id"]))
        )
        say(f"{row['tenant']}: BROKEN, {fault['kind']}: {where}: {fault['detail']}")
        note(f"{row['tenant']}: {row['good']:,} entries before it are good")
        return
    say(f"{row['tenant']}: {row['good']:,} entries are good; head {row['head'] or 'none yet'}")
    if row["unchained"]:
        note(
            f"{row['tenant']}: {row['unchained']:,} more are not chained yet, the oldest since "
            f"{row['oldest_unchained_at']}; a dispatcher that runs does it within seconds"
        )
    if row["late"]:
        note(
            f"{row['tenant']}: {row['late']:,} were chained more than an hour after they were "
            "written: did no dispatcher run then? If one did, the chain was made anew"
        )
