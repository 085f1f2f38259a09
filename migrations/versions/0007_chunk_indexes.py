"""Indexes for the relay and the sweeper: their cost follows what is in work, not what waits.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index(
        "ix_chunks_runnable",
        "chunks",
        ["job_id", "queue", "lo"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND last_rung_at IS NULL"),
    )
    op.create_index(
        "ix_chunks_active",
        "chunks",
        ["queue", "last_rung_at"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'running' OR (state = 'pending' AND last_rung_at IS NOT NULL)"
        ),
    )
    op.create_index(
        "ix_chunks_killed",
        "chunks",
        ["kills"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND kills > 0"),
    )
    # ix_chunks_runnable took its place; an index that only reads miss may go at once.
    op.drop_index("ix_chunks_pending", table_name="chunks")


def downgrade() -> None:
    op.create_index(
        "ix_chunks_pending",
        "chunks",
        ["job_id", "lo"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index("ix_chunks_killed", table_name="chunks")
    op.drop_index("ix_chunks_active", table_name="chunks")
    op.drop_index("ix_chunks_runnable", table_name="chunks")
