"""Weights files that no import has taken yet, for the clean-up.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.create_index(
        "ix_uploads_weights",
        "uploads",
        ["created_at"],
        postgresql_where=sa.text("state = 'ready' AND kind = 'weights'"),
    )


def downgrade() -> None:
    op.drop_index("ix_uploads_weights", table_name="uploads")
