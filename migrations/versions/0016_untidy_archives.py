"""Archives that were unpacked are among the uploads that may have left something behind.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.drop_index("ix_uploads_untidied", table_name="uploads")
    op.create_index(
        "ix_uploads_untidied",
        "uploads",
        ["created_at"],
        postgresql_where=sa.text(
            "tidied_at IS NULL AND (state IN ('receiving', 'failed') "
            "OR state = 'ready' AND kind = 'archive')"
        ),
    )


def downgrade() -> None:
    op.drop_index("ix_uploads_untidied", table_name="uploads")
    op.create_index(
        "ix_uploads_untidied",
        "uploads",
        ["created_at"],
        postgresql_where=sa.text("tidied_at IS NULL AND state IN ('receiving', 'failed')"),
    )
