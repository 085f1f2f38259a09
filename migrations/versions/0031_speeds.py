"""How fast versions are on the devices that they ran on: kept with chunks, summed as jobs end.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.create_table(
        "speeds",
        sa.Column("model_version_id", sa.Text(collation="C"), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("forward_seconds", sa.Double(), nullable=False),
        sa.Column("busy_seconds", sa.Double(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_speeds_tenant_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_version_id"],
            ["model_versions.tenant_id", "model_versions.id"],
            name=op.f("fk_speeds_tenant_id_model_version_id"),
        ),
        sa.PrimaryKeyConstraint("model_version_id", "device", name=op.f("pk_speeds")),
    )
    secure_table("speeds")
    op.add_column("chunks", sa.Column("speed", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("chunks", "speed")
    op.drop_table("speeds")
