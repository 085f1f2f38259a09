"""``darkroom sealing``: the keys that seal weights and webhook secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import GuardedGroup, JsonFlag
from app.cli.console import note, print_json, print_table
from app.cli.exits import Exit
from app.cli.tenants import find_database

if TYPE_CHECKING:
    from app.audit.keys import AuditKey
    from app.db.session import Database
    from app.keyring import Keyring

app = typer.Typer(
    cls=GuardedGroup,
    help="The keys that seal weights and webhook secrets.",
    no_args_is_help=True,
)


@app.callback()
def sealing() -> None:
    """The keys that seal weights and webhook secrets."""


@app.command("new-key")
def new_key(
    name: Annotated[
        str, typer.Argument(help="How the key is called, such as 2027-01.", show_default=False)
    ],
) -> None:
    """Make a sealing key, as DARKROOM_SEALING_KEYS takes it; it is kept nowhere else.

    To rotate, put it behind the keys that are there, restart everything, then put it first.
    """
    from app.keyring import check_key_id, new_key_text

    check_key_id(name)
    print(new_key_text(name))


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Show which sealing key opens how many secrets, straight in the database.

    A key that seals none can be dropped from DARKROOM_SEALING_KEYS once every process has the
    new one first.
    """
    from app.rotation import sealing_status

    with _system() as (db, keyring, _):
        found = sealing_status(db)
    known = keyring.key_ids
    if as_json:
        print_json({"keys": known, "active": keyring.active_id, "sealed": [*map(asdict, found)]})
        return
    rows = []
    for key_id in dict.fromkeys([*known, *(key_id for one in found for key_id in one.by_key)]):
        state = "seals" if key_id == keyring.active_id else "opens"
        counts = (f"{one.by_key.get(key_id, 0):,}" for one in found)
        rows.append((key_id, state if key_id in known else "missing", *counts))
    print_table(("key", "it", *(one.name for one in found)), rows, empty="no sealing keys")
    for one in found:
        if one.in_clear:
            note(f"{one.name}: {one.in_clear:,} in clear, from before they were sealed")


@app.command()
def rotate(as_json: JsonFlag = False) -> None:
    """Seal every secret again under the first key, straight in the database.

    Only the small wrapped keys are written, no weights. May be broken off and run again, while
    the service runs. The old keys must still be there; `darkroom sealing status` says when they
    seal nothing any more.
    """
    from app.rotation import rotate as rotate_all

    with _system() as (db, keyring, audit_key):
        done = rotate_all(db, keyring, audit_key())
    if as_json:
        print_json({"active": keyring.active_id, "rotated": [asdict(one) for one in done]})
    else:
        print_table(
            ("secrets of", "sealed again", "refused"),
            [(one.name, f"{one.resealed:,}", f"{sum(one.refused.values()):,}") for one in done],
            empty="nothing is sealed",
        )
    refused = {code for one in done for code in one.refused}
    if refused:
        note(f"some did not open ({', '.join(sorted(refused))}): the log names them")
        raise typer.Exit(Exit.FAILED)


@contextmanager
def _system() -> Iterator[tuple[Database, Keyring, Callable[[], AuditKey]]]:
    """The database as the system sees it, the sealing keys, and what signs the audit log."""
    from app.audit.keys import AuditKey
    from app.db.session import Database
    from app.keyring import Keyring
    from app.settings import load_settings

    settings = load_settings(**find_database())
    # Says which setting is missing, before anything is connected.
    assert settings.system_url
    keyring = Keyring.from_settings(settings)
    db = Database.from_settings(settings)
    try:
        pepper = settings.key_pepper.get_secret_value()
        yield db, keyring, lambda: AuditKey.derive(pepper)
    finally:
        db.close()
