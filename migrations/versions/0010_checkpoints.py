"""Ended fine-tunings whose checkpoints are still to be deleted.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_index(
        "ix_chunks_untidy",
        "chunks",
        ["id"],
        postgresql_where=sa.text(
            "task = 'finetune' AND cursor IS NOT NULL AND state NOT IN ('pending', 'running')"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_chunks_untidy", table_name="chunks")
