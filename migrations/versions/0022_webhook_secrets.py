"""The secrets that webhooks are signed with, sealed.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("sealed_secret", sa.Text(), nullable=True))
    op.add_column("webhooks", sa.Column("sealed_previous_secret", sa.Text(), nullable=True))
    op.add_column(
        "webhooks",
        sa.Column("previous_secret_ends_at", sa.DateTime(timezone=True), nullable=True),
    )


def downgrade() -> None:
    op.drop_column("webhooks", "previous_secret_ends_at")
    op.drop_column("webhooks", "sealed_previous_secret")
    op.drop_column("webhooks", "sealed_secret")
