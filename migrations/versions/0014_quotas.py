"""Quotas of a tenant, and what its stored bytes are summed from.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_QUOTAS = ("max_open_jobs", "max_open_items", "max_stored_bytes", "max_submissions_per_minute")


def upgrade() -> None:
    for name in _QUOTAS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column(
        "uploads", sa.Column("packed_bytes", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.execute(
        "UPDATE uploads SET packed_bytes = s.bytes "
        "FROM (SELECT upload_id, sum(size_bytes) AS bytes FROM shards GROUP BY upload_id) s "
        "WHERE s.upload_id = uploads.id"
    )
    op.create_index("ix_artifacts_tenant_id", "artifacts", ["tenant_id"])


def downgrade() -> None:
    op.drop_index("ix_artifacts_tenant_id", table_name="artifacts")
    op.drop_column("uploads", "packed_bytes")
    for name in reversed(_QUOTAS):
        op.drop_column("tenants", name)
