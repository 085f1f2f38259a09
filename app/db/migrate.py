"""Runs the migrations; the same road for ``darkroom up``, the tests and production."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.db.roles import API_ROLE
from app.db.schema import check_not_newer, read_revision
from app.db.session import make_engine


def alembic_config(system_url: str) -> Config:
    """Alembic's configuration, made in code so that an installed wheel needs no file."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["system_url"] = system_url
    return config


def upgrade(system_url: str, revision: str = "head") -> None:
    """Bring the schema to ``revision``; one process at a time, others wait.

    Raises:
        SchemaError: the schema is newer than this code.
    """
    engine = make_engine(system_url, pool_size=2)
    config = alembic_config(system_url)
    try:
        # A session lock, not a transaction's: migrations run in transactions of their own.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as guard:
            guard.execute(text("SET lock_timeout = '60s'"))
            guard.execute(text("SELECT pg_advisory_lock(hashtext('darkroom.migrate'))"))
            check_not_newer(read_revision(guard))
            command.upgrade(config, revision)
            # Alembic's own table, which no migration makes: processes compare it with their
            # code as they start.
            guard.execute(text(f"GRANT SELECT ON public.alembic_version TO {API_ROLE}"))
    finally:
        engine.dispose()
