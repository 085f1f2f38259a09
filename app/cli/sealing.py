"""``darkroom sealing``: the keys that seal weights and webhook secrets."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.connect import GuardedGroup

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

    To rotate, put it before the keys that are there already, with a comma between.
    """
    from app.keyring import check_key_id, new_key_text

    check_key_id(name)
    print(new_key_text(name))
