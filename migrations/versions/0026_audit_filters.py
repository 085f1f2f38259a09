"""Indexes for the filters of the audit log by action, by key and by time.

Without them a filter that few entries pass read the entries of every tenant.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

from alembic import op

revision = "0026"
down_revision = "0025"

_INDEXES = {
    "ix_audit_entries_tenant_id_action_id": ["tenant_id", "action", "id"],
    "ix_audit_entries_tenant_id_actor_id": ["tenant_id", "actor", "id"],
    "ix_audit_entries_tenant_id_at": ["tenant_id", "at"],
}


def upgrade() -> None:
    for name, columns in _INDEXES.items():
        op.create_index(name, "audit_entries", columns)


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, table_name="audit_entries")
