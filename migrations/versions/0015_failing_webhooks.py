"""Since when a webhook fails, and each webhook's deliveries in the order in which they are due.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column(
        "webhooks", sa.Column("first_failed_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_index(
        "ix_webhook_deliveries_webhook_id_due_at",
        "webhook_deliveries",
        ["webhook_id", "due_at"],
        postgresql_where=sa.text("state IN ('pending', 'sending')"),
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_webhook_id_due_at", table_name="webhook_deliveries")
    op.drop_column("webhooks", "first_failed_at")
