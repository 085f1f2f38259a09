"""The audit log's trigger looks at bytes: no entry that can be written keeps others from the chain.

It compared rows as jsonb, which refuses what json takes: an escaped zero, half a character, a
number or a depth beyond jsonb's bounds. One such entry, by whoever holds the role of the API,
stopped the chain of every tenant, and append-only as it is it could not be taken away.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"

_HEAD = """
    CREATE OR REPLACE FUNCTION keep_audit_entries() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    AS $$
"""
_TAIL = """
        RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP
            USING ERRCODE = 'insufficient_privilege';
    END
    $$
"""


def upgrade() -> None:
    # Still whatever columns come later: but for the link, old and new row have the same image.
    op.execute(
        f"""{_HEAD}
    BEGIN
        IF TG_OP = 'UPDATE' AND OLD.seq IS NULL AND NEW.seq IS NOT NULL THEN
            OLD.seq := NEW.seq;
            OLD.chained_at := NEW.chained_at;
            OLD.hash_key := NEW.hash_key;
            OLD.hash := NEW.hash;
            IF OLD *= NEW THEN
                RETURN NEW;
            END IF;
        END IF;
        {_TAIL}"""
    )


def downgrade() -> None:
    op.execute(
        f"""{_HEAD}
    DECLARE
        link constant text[] := '{{seq,chained_at,hash_key,hash}}';
    BEGIN
        IF TG_OP = 'UPDATE' AND OLD.seq IS NULL AND NEW.seq IS NOT NULL
           AND to_jsonb(OLD) - link = to_jsonb(NEW) - link
           AND OLD.details::text = NEW.details::text THEN
            RETURN NEW;
        END IF;
        {_TAIL}"""
    )
