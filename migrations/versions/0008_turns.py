"""Whose turn it is in each queue, and how many items make a full chunk of a job.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.security import secure_table

revision = "0008"
down_revision = "0007"

_ENDED = "'succeeded', 'partially_succeeded', 'failed', 'expired', 'cancelled'"


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deficit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "tenant_id", "job_id", name=op.f("pk_turns")),
    )
    secure_table("turns")
    # The dispatcher's alone.
    op.execute("REVOKE ALL ON turns FROM darkroom_api")
    op.add_column("jobs", sa.Column("chunk_items", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_tenant_open",
        "jobs",
        ["tenant_id", "id"],
        postgresql_where=sa.text(f"state NOT IN ({_ENDED})"),
    )
    # Planning asks for other work that waits while it holds a slot. One bit, no rows: a worker
    # sees its tenant's rows only, and must not see more.
    op.execute(
        """
        CREATE FUNCTION others_wait(wanted_queue text, own_job text)
        RETURNS boolean
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
        AS $$
            SELECT EXISTS (
                SELECT 1 FROM chunks
                WHERE queue = wanted_queue AND state = 'pending'
                  AND last_rung_at IS NOT NULL AND job_id <> own_job
            )
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION others_wait(text, text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION others_wait(text, text) TO darkroom_api")


def downgrade() -> None:
    op.execute("DROP FUNCTION others_wait(text, text)")
    op.drop_index("ix_jobs_tenant_open", table_name="jobs")
    op.drop_column("jobs", "chunk_items")
    op.drop_table("turns")
