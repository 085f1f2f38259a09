"""``darkroom migrate``: makes the roles, then brings the schema up to date."""

from __future__ import annotations

from app.cli.console import say


def migrate() -> None:
    """Make the database roles (with ADMIN_DATABASE_URL) and bring the schema up to date.

    Safe to run again, and from several machines at once.
    """
    from app.settings import load_settings
    from app.stack.prepare import prepare_database

    settings = load_settings()
    admin = settings.admin_database_url
    prepare_database(
        url=settings.database_url.get_secret_value(),
        system_url=settings.system_url,
        admin_url=admin.get_secret_value() if admin else None,
    )
    say("the schema is up to date")
