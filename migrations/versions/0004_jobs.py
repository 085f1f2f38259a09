"""Jobs, chunks, items, artifacts, idempotency keys, workers.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("input", postgresql.JSONB(), nullable=False),
        sa.Column("options", postgresql.JSONB(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column("model_version_id", sa.Text(collation="C"), nullable=True),
        sa.Column("dataset_version_id", sa.Text(collation="C"), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("succeeded", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("progress", postgresql.JSONB(), nullable=True),
        sa.Column("result", postgresql.JSONB(), nullable=True),
        sa.Column("error", postgresql.JSONB(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("running_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('succeeded', 'partially_succeeded', 'failed', 'cancelled'))",
            name=op.f("ck_jobs_ended"),
        ),
        sa.CheckConstraint(
            "kind IN ('predict', 'finetune', 'export', 'ingest', 'import')",
            name=op.f("ck_jobs_kind"),
        ),
        sa.CheckConstraint(
            "state IN ('validating', 'queued', 'running', 'finalizing', 'cancelling', 'succeeded', 'partially_succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(
            "succeeded >= 0 AND failed >= 0 AND skipped >= 0 AND cancelled >= 0 AND (sealed_at IS NULL OR succeeded + failed + skipped + cancelled <= total)",
            name=op.f("ck_jobs_counts"),
        ),
        sa.ForeignKeyConstraint(
            ["dataset_version_id"], ["dataset_versions.id"], name=op.f("fk_jobs_dataset_version_id")
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_versions.id"], name=op.f("fk_jobs_model_version_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_model_version_id", "jobs", ["model_version_id", "ended_at"], unique=False
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["state"],
        unique=False,
        postgresql_where=sa.text(
            "state NOT IN ('succeeded', 'partially_succeeded', 'failed', 'cancelled')"
        ),
    )
    op.create_index("ix_jobs_tenant_id_id", "jobs", ["tenant_id", "id"], unique=False)
    op.create_table(
        "chunks",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lo", sa.BigInteger(), nullable=False),
        sa.Column("hi", sa.BigInteger(), nullable=False),
        sa.Column("items", postgresql.JSONB(), nullable=True),
        sa.Column("cursor", postgresql.JSONB(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kills", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Text(collation="C"), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("last_rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("running_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_chunks_lease")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'done', 'cancelled')", name=op.f("ck_chunks_state")
        ),
        sa.CheckConstraint(
            "task IN ('plan', 'predict', 'finetune', 'export', 'ingest', 'import')",
            name=op.f("ck_chunks_task"),
        ),
        sa.CheckConstraint("lo <= hi", name=op.f("ck_chunks_range")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_chunks_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_chunks_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
    )
    op.create_index("ix_chunks_job_id_lo", "chunks", ["job_id", "lo"], unique=False)
    # What waits to be rung, what is in work, what keeps failing: the relay's and the sweeper's
    # cost follows these and not the number of chunks.
    op.create_index(
        "ix_chunks_runnable",
        "chunks",
        ["job_id", "queue", "lo"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND last_rung_at IS NULL"),
    )
    op.create_index(
        "ix_chunks_active",
        "chunks",
        ["queue", "last_rung_at"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'running' OR (state = 'pending' AND last_rung_at IS NOT NULL)"
        ),
    )
    op.create_index(
        "ix_chunks_killed",
        "chunks",
        ["kills"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND kills > 0"),
    )
    op.create_index(
        "ix_chunks_running",
        "chunks",
        ["lease_until"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "items",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("prediction", postgresql.JSONB(), nullable=True),
        sa.Column("error", postgresql.JSONB(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), nullable=True),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_items_error")),
        sa.CheckConstraint(
            "state IN ('succeeded', 'failed', 'skipped')", name=op.f("ck_items_state")
        ),
        sa.PrimaryKeyConstraint("job_id", "ordinal", name=op.f("pk_items")),
    )
    op.create_index(
        "ix_items_failed",
        "items",
        ["job_id", "ordinal"],
        unique=False,
        postgresql_where=sa.text("state = 'failed'"),
    )
    op.create_index(
        "ix_items_job_id_seq_ordinal", "items", ["job_id", "seq", "ordinal"], unique=False
    )
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_artifacts_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_artifacts_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_index("ix_artifacts_job_id_id", "artifacts", ["job_id", "id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("warm_versions", postgresql.JSONB(), nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "last_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index(
        "ix_workers_alive",
        "workers",
        ["queue"],
        unique=False,
        postgresql_where=sa.text("gone_at IS NULL"),
    )
    op.create_index("ix_workers_name", "workers", ["name"], unique=False)
    secure_table("jobs")
    secure_table("chunks")
    secure_table("items")
    secure_table("artifacts")
    secure_table("idempotency_keys")
    op.create_foreign_key(
        op.f("fk_model_versions_job_id"), "model_versions", "jobs", ["job_id"], ["id"]
    )
    # Workers belong to the installation, not to a tenant.
    op.execute("GRANT SELECT, INSERT, UPDATE ON workers TO darkroom_api")


def downgrade() -> None:
    op.drop_constraint("fk_model_versions_job_id", "model_versions")
    op.drop_table("workers")
    op.drop_table("idempotency_keys")
    op.drop_table("artifacts")
    op.drop_table("items")
    op.drop_table("chunks")
    op.drop_table("jobs")
