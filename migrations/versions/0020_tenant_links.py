"""Foreign keys name the tenant too: no row links to one of another tenant.

A foreign key is checked past row level security. A row of one tenant could name a job, a dataset or a
model version of another, where code forgot to look. Now the tenant is a part of each such key.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"

#: Tables that are pointed to and have an index over (tenant_id, id) that was not unique yet.
_INDEXED = ("jobs", "model_versions", "uploads", "webhooks")
_NOT_INDEXED = ("datasets", "dataset_versions", "models")

#: (table, column, what it points to, ON DELETE)
_LINKS = (
    ("dataset_versions", "dataset_id", "datasets", None),
    ("samples", "dataset_version_id", "dataset_versions", "CASCADE"),
    ("model_versions", "model_id", "models", None),
    ("model_versions", "job_id", "jobs", None),
    ("aliases", "model_id", "models", None),
    ("aliases", "version_id", "model_versions", None),
    ("jobs", "dataset_version_id", "dataset_versions", None),
    ("jobs", "model_version_id", "model_versions", None),
    ("jobs", "retry_of", "jobs", None),
    ("chunks", "job_id", "jobs", "CASCADE"),
    ("artifacts", "job_id", "jobs", "CASCADE"),
    ("uploads", "job_id", "jobs", None),
    ("shards", "upload_id", "uploads", "CASCADE"),
    ("metrics", "job_id", "jobs", "CASCADE"),
    ("events", "job_id", "jobs", "CASCADE"),
    ("webhook_deliveries", "webhook_id", "webhooks", "CASCADE"),
)


def upgrade() -> None:
    for table in _INDEXED:
        op.drop_index(f"ix_{table}_tenant_id_id", table_name=table)
    for table in (*_INDEXED, *_NOT_INDEXED):
        op.create_index(f"ix_{table}_tenant_id_id", table, ["tenant_id", "id"], unique=True)
    for table, column, target, on_delete in _LINKS:
        op.create_foreign_key(
            op.f(f"fk_{table}_tenant_id_{column}"),
            table,
            target,
            ["tenant_id", column],
            ["tenant_id", "id"],
            ondelete=on_delete,
        )
        op.drop_constraint(f"fk_{table}_{column}", table, type_="foreignkey")


def downgrade() -> None:
    for table, column, target, on_delete in _LINKS:
        op.create_foreign_key(
            op.f(f"fk_{table}_{column}"), table, target, [column], ["id"], ondelete=on_delete
        )
        op.drop_constraint(f"fk_{table}_tenant_id_{column}", table, type_="foreignkey")
    for table in (*_INDEXED, *_NOT_INDEXED):
        op.drop_index(f"ix_{table}_tenant_id_id", table_name=table)
    for table in _INDEXED:
        op.create_index(f"ix_{table}_tenant_id_id", table, ["tenant_id", "id"])
