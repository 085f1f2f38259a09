"""Which line of keys a key belongs to: those that succeed each other by rotation.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("line_id", sa.Text(collation="C"), nullable=True))
    # Unique, so that the foreign key can name the tenant too: a line is one tenant's.
    op.drop_index("ix_api_keys_tenant_id_id", table_name="api_keys")
    op.create_index("ix_api_keys_tenant_id_id", "api_keys", ["tenant_id", "id"], unique=True)
    op.create_foreign_key(
        op.f("fk_api_keys_tenant_id_line_id"),
        "api_keys",
        "api_keys",
        ["tenant_id", "line_id"],
        ["tenant_id", "id"],
    )
    op.create_index(
        "ix_api_keys_line_id",
        "api_keys",
        ["line_id"],
        postgresql_where=sa.text("line_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_api_keys_line_id", table_name="api_keys")
    op.drop_constraint("fk_api_keys_tenant_id_line_id", "api_keys")
    op.drop_index("ix_api_keys_tenant_id_id", table_name="api_keys")
    op.create_index("ix_api_keys_tenant_id_id", "api_keys", ["tenant_id", "id"])
    op.drop_column("api_keys", "line_id")
