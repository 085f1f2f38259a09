"""When the clean-up was done with an upload or a job, and an index by which old keys are found.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("tidied_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("tidied_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_uploads_untidied",
        "uploads",
        ["created_at"],
        postgresql_where=sa.text("tidied_at IS NULL AND state IN ('receiving', 'failed')"),
    )
    op.create_index(
        "ix_jobs_untidied",
        "jobs",
        ["ended_at"],
        postgresql_where=sa.text(
            "tidied_at IS NULL AND ended_at IS NOT NULL "
            "AND kind IN ('finetune', 'export', 'import')"
        ),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.drop_index("ix_jobs_untidied", table_name="jobs")
    op.drop_index("ix_uploads_untidied", table_name="uploads")
    op.drop_column("jobs", "tidied_at")
    op.drop_column("uploads", "tidied_at")
