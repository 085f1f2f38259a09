"""What every tenant's table gets in the migration that makes it."""

from __future__ import annotations

from alembic import op


def secure_table(table: str) -> None:
    """Show darkroom_api only the rows of the tenant that its transaction is bound to.

    FORCE binds the owner too; only roles with BYPASSRLS (``darkroom_system``) see all. The
    setting reads '' where no tenant was bound, which equals no id, so nothing shows.
    """
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO darkroom_api")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant_rows ON {table} "
        "USING (tenant_id = current_setting('app.tenant', true)) "
        "WITH CHECK (tenant_id = current_setting('app.tenant', true))"
    )
