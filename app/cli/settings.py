"""``darkroom settings``: every setting, its default, its present value, what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from app.cli.connect import JsonFlag
from app.cli.console import note, print_json, print_table
from app.cli.exits import Exit

#: PostgreSQL and Redis take a password in the query too.
_QUERY_SECRET = re.compile(r"([?&][^=&]*(?:password|secret)[^=&]*=)[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as it is shown; ``value`` never holds a secret."""

    name: str
    default: str
    value: str
    is_set: bool
    description: str


def setting_rows(environ: Mapping[str, str]) -> list[SettingRow]:
    """All settings in the order of the table, with the values of ``environ``."""
    from app.settings import Settings, is_secret, variable_of

    rows = []
    for field_name, field in Settings.model_fields.items():
        name = variable_of(field_name)
        default = "required" if field.is_required() else _default_text(field.default)
        given = environ.get(name)
        value = default
        if given is not None:
            value = mask(given) if is_secret(field_name) else given
        rows.append(SettingRow(name, default, value, given is not None, field.description or ""))
    return rows


def mask(secret: str) -> str:
    """An address without its password; any other secret, or one badly written, as asterisks."""
    from app.addresses import check_address

    try:
        check_address(secret)
    except ValueError:
        return "********" if secret else ""
    parts = urlsplit(secret)
    shown = secret
    if parts.password is not None:
        user, host = parts.netloc.rsplit("@", 1)
        shown = urlunsplit(parts._replace(netloc=f"{user.split(':', 1)[0]}:***@{host}"))
    return _QUERY_SECRET.sub(r"\1***", shown)


def markdown_table() -> str:
    """The table as README shows it: name, default, meaning."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for row in setting_rows({}):
        default = row.default if row.default in ("", "required") else f"`{row.default}`"
        lines.append(f"| `{row.name}` | {default} | {row.description} |")
    return "\n".join(lines)


def _default_text(default: Any) -> str:
    if default is None:
        return ""
    text: str = default.get_secret_value() if hasattr(default, "get_secret_value") else str(default)
    return text


def settings(
    as_json: JsonFlag = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as README shows it.")
    ] = False,
) -> None:
    """Show all settings with their present values; secrets are masked.

    They are read from the environment of this process. Exit code 1 where they are not valid.
    """
    if as_markdown:
        print(markdown_table())
        return
    from rich.text import Text

    from app.cli.console import print_error
    from app.errors import SettingsError
    from app.settings import load_settings, read_environment

    try:
        rows = setting_rows(read_environment())
    except SettingsError as error:
        print_error(error.detail, error.code)
        raise typer.Exit(Exit.FAILED) from None
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_table(
            ("setting", "value", "meaning"),
            [
                (
                    row.name,
                    Text(row.value or "–", style="bold cyan" if row.is_set else "dim"),
                    row.description,
                )
                for row in rows
            ],
            wrap=("value", "meaning"),
        )
        note(
            "values as this environment has them; a service goes by the environment that it was "
            "started in"
        )
    if not any(row.is_set for row in rows):
        # A machine that only uses the client needs none of them.
        return
    try:
        load_settings()
    except Exception as error:
        if not isinstance(error, SettingsError):
            raise
        print_error(error.detail, error.code)
        raise typer.Exit(Exit.FAILED) from None
