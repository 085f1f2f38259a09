"""Events of jobs: the outbox.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("event_number", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("state IN ('pending', 'fanned_out')", name=op.f("ck_events_state")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_events")),
    )
    op.create_index(
        "ix_events_pending",
        "events",
        ["created_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_events_created_at", "events", ["created_at"])
    secure_table("events")


def downgrade() -> None:
    op.drop_table("events")
    op.drop_column("jobs", "event_number")
