"""``first_item`` is right whoever writes a chunk: a process of the release before does not know it.

Such a process goes on while the schema is migrated. Its plan leaves the column's default, and
where it narrows it drops the references of what it recorded. References always end at ``hi``, so
their number says where they begin.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION set_first_item()
        RETURNS trigger
        LANGUAGE plpgsql SET search_path = public, pg_temp
        AS $$
        BEGIN
            NEW.first_item := NEW.hi - jsonb_array_length(NEW.items -> 'rows');
            RETURN NEW;
        END
        $$
        """
    )
    # Planning and narrowing alone write these columns; claims, beats and records do not.
    op.execute(
        """
        CREATE TRIGGER set_first_item
        BEFORE INSERT OR UPDATE OF hi, items ON chunks
        FOR EACH ROW WHEN (NEW.items IS NOT NULL)
        EXECUTE FUNCTION set_first_item()
        """
    )
    op.execute(
        "UPDATE chunks SET first_item = hi - jsonb_array_length(items -> 'rows') "
        "WHERE items IS NOT NULL AND state IN ('pending', 'running') "
        "AND first_item <> hi - jsonb_array_length(items -> 'rows')"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER set_first_item ON chunks")
    op.execute("DROP FUNCTION set_first_item()")
