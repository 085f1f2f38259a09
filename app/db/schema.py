"""Whether this code and the schema of the database fit; asked by every process at its start."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.errors import SettingsError


class SchemaError(SettingsError):
    """The schema is newer or older than this code; the detail says which, and what to do."""

    code = "schema_too_new"


@cache
def known_revisions() -> tuple[str, ...]:
    """The revisions that this code has migrations to, the newest first."""
    # By the names of the files, which count up: alembic would tell as much, but no process other
    # than the one that migrates needs it, and to load it is a part of each start.
    names = (file.name for file in files("migrations").joinpath("versions").iterdir())
    numbers = (name.partition("_")[0] for name in names if name.endswith(".py"))
    return tuple(sorted(filter(str.isdigit, numbers), reverse=True))


def newest_revision() -> str:
    """The revision that this code is written for."""
    return known_revisions()[0]


def read_revision(session: Session | Connection) -> str | None:
    """The schema's revision; None where there is none, or none that this role may read.

    API and workers may read it since the code that asks for it migrated last, so for them
    None means: older than this code.
    """
    readable = session.scalar(
        text("SELECT has_table_privilege(to_regclass('public.alembic_version'), 'SELECT')")
    )
    if not readable:
        return None
    found: str | None = session.scalar(text("SELECT version_num FROM public.alembic_version"))
    return found


def check_not_newer(revision: str | None) -> None:
    """Refuse a schema that this code does not know.

    Raises:
        SchemaError: ``schema_too_new``.
    """
    if revision is not None and revision not in known_revisions():
        raise SchemaError(
            f"the data were written by a newer Darkroom (schema {revision}, this one knows up to "
            f"{newest_revision()}): upgrade"
        )


def require_schema(db: Database) -> None:
    """Let a process start only on the schema that its code is written for.

    Raises:
        SchemaError: ``schema_too_new`` or ``schema_too_old``.
        UnavailableError: the database does not answer.
    """
    with db.anonymous() as session:
        revision = read_revision(session)
    check_not_newer(revision)
    if revision != newest_revision():
        found = f"is at {revision}" if revision else "is older or missing"
        raise SchemaError(
            f"the schema {found} and this Darkroom needs {newest_revision()}: "
            "run `darkroom migrate`, or `darkroom up`, which does it too",
            code="schema_too_old",
        )
