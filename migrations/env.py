"""Alembic's entry: every feature's tables, one connection as the system role."""

from __future__ import annotations

import os

from alembic import context

import app.audit.tables
import app.datasets.tables
import app.jobs.events
import app.jobs.tables
import app.models.tables
import app.tenants.tables
import app.training.tables
import app.uploads.tables
import app.webhooks.tables  # noqa: F401  (each import adds its tables to the metadata)
from app.db.base import Base
from app.db.session import make_engine


def run() -> None:
    """Run the migrations that Alembic selected, each in a transaction of its own."""
    url = context.config.attributes.get("system_url") or os.environ["SYSTEM_DATABASE_URL"]
    engine = make_engine(url, pool_size=1)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            transaction_per_migration=True,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
