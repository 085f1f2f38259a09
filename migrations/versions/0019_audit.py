"""The audit log: append-only, chained, and out of reach of every role of ours.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_MINE = "(tenant_id = current_setting('app.tenant', true))"
#: What the writer says; the time is the database's, the chain is the dispatcher's.
_WRITTEN = (
    "tenant_id, id, actor, action, outcome, target, request_id, client_address, details, "
    "mac_key, mac"
)


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("client_address", sa.Text(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("mac_key", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("chained_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("hash_key", sa.Text(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("outcome IN ('done', 'denied')", name=op.f("ck_audit_entries_outcome")),
        sa.CheckConstraint(
            "num_nulls(seq, chained_at, hash_key, hash) IN (0, 4) AND seq >= 1",
            name=op.f("ck_audit_entries_chained"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_audit_entries_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_audit_entries")),
    )
    op.create_index(
        "uq_audit_entries_tenant_id_seq", "audit_entries", ["tenant_id", "seq"], unique=True
    )
    op.create_index(
        "ix_audit_entries_tenant_id_target_id", "audit_entries", ["tenant_id", "target", "id"]
    )
    op.create_index(
        "ix_audit_entries_unchained",
        "audit_entries",
        ["at", "id"],
        postgresql_where=sa.text("seq IS NULL"),
    )
    op.create_table(
        "audit_heads",
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("mac_key", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_audit_heads_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_audit_heads")),
    )
    # Less than other tables get: to add what it knows, and to read. No UPDATE, no DELETE.
    op.execute(f"GRANT SELECT, INSERT ({_WRITTEN}) ON audit_entries TO darkroom_api")
    op.execute("GRANT SELECT ON audit_heads TO darkroom_api")
    for table in ("audit_entries", "audit_heads"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant_rows ON {table} USING {_MINE} WITH CHECK {_MINE}")
    # Binds the owner, too. Only the step from "not chained" to "chained" passes, once; whatever
    # columns come later are compared as well. As text, since jsonb would hold 1.0 and 1.00 equal.
    op.execute(
        """
        CREATE FUNCTION keep_audit_entries() RETURNS trigger
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            link constant text[] := '{seq,chained_at,hash_key,hash}';
        BEGIN
            IF TG_OP = 'UPDATE' AND OLD.seq IS NULL AND NEW.seq IS NOT NULL
               AND to_jsonb(OLD) - link = to_jsonb(NEW) - link
               AND OLD.details::text = NEW.details::text THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END
        $$
        """
    )
    op.execute(
        "CREATE TRIGGER keep_rows BEFORE UPDATE OR DELETE ON audit_entries "
        "FOR EACH ROW EXECUTE FUNCTION keep_audit_entries()"
    )
    op.execute(
        "CREATE TRIGGER keep_table BEFORE TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION keep_audit_entries()"
    )
    # ALWAYS: session_replication_role does not switch them off.
    for trigger in ("keep_rows", "keep_table"):
        op.execute(f"ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER {trigger}")


def downgrade() -> None:
    op.drop_table("audit_heads")
    op.drop_table("audit_entries")
    op.execute("DROP FUNCTION keep_audit_entries()")
