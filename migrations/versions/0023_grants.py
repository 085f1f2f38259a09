"""Models shared between tenants, and what may be asked of a model in a day.

A tenant that a model was shared with still sees no row of its owner: it asks functions that run
as their owner, take the tenant from the transaction and give away chosen columns of what was
granted. It writes what it has asked by such a function too, so it can never take it back.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0023"
down_revision = "0022"

_NOW = sa.text("now()")

_FIND_TENANT = """
CREATE FUNCTION find_tenant(wanted text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$ SELECT id FROM tenants WHERE name = wanted $$
"""

# From the grants of who asks: what is not shared takes the same time, whether it exists or not.
_SHARED_VERSIONS = """
CREATE FUNCTION shared_versions(wanted_owner text, wanted_model text, wanted_version text)
RETURNS TABLE (owner_id text, owner text, model_id text, model text, rights text[],
               answers text, max_items_per_day bigint, items_today bigint, id text,
               number integer, state text, aliases text[], arch text, arch_options jsonb,
               classes jsonb, preprocess jsonb, preprocess_sha256 text, weights_key text,
               weights_sha256 text, weights_bytes bigint, parameter_count bigint,
               sealed_key text, sealed_sha256 text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT o.id, o.name, m.id, m.name, g.rights, g.answers, g.max_items_per_day,
           coalesce(q.items, 0), v.id, v.number, v.state,
           ARRAY(SELECT a.name FROM aliases a WHERE a.version_id = v.id ORDER BY a.name),
           v.arch, v.arch_options, v.classes, v.preprocess, v.preprocess_sha256,
           v.weights_key, v.weights_sha256, v.weights_bytes, v.parameter_count,
           v.sealed_key, v.sealed_sha256
    FROM grants g
    JOIN models m ON m.id = g.model_id AND m.tenant_id = g.tenant_id
    JOIN tenants o ON o.id = g.tenant_id
    JOIN model_versions v ON v.model_id = m.id AND v.tenant_id = g.tenant_id
    LEFT JOIN query_counts q ON q.tenant_id = g.grantee_id AND q.subject = g.model_id
        AND q.day = (now() AT TIME ZONE 'UTC')::date
    WHERE g.grantee_id = current_setting('app.tenant', true)
      AND v.state IN ('ready', 'archived')
      AND (wanted_version IS NULL OR v.id = wanted_version)
      AND (wanted_owner IS NULL OR o.name = wanted_owner)
      AND (wanted_model IS NULL OR m.name = wanted_model)
$$
"""

_SHARED_MODELS = """
CREATE FUNCTION shared_models()
RETURNS TABLE (id text, owner text, name text, rights text[], answers text,
               max_items_per_day bigint, items_today bigint, aliases jsonb,
               version_numbers integer[], created_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT g.id, o.name, m.name, g.rights, g.answers, g.max_items_per_day,
           coalesce(q.items, 0),
           coalesce((SELECT jsonb_object_agg(a.name, v.number)
                     FROM aliases a JOIN model_versions v ON v.id = a.version_id
                     WHERE a.model_id = m.id AND v.state = 'ready'), '{}'),
           ARRAY(SELECT v.number FROM model_versions v
                 WHERE v.model_id = m.id AND v.state = 'ready' ORDER BY v.number DESC),
           g.created_at
    FROM grants g
    JOIN models m ON m.id = g.model_id AND m.tenant_id = g.tenant_id
    JOIN tenants o ON o.id = g.tenant_id
    LEFT JOIN query_counts q ON q.tenant_id = g.grantee_id AND q.subject = g.model_id
        AND q.day = (now() AT TIME ZONE 'UTC')::date
    WHERE g.grantee_id = current_setting('app.tenant', true)
$$
"""

_LIST_GRANTS = """
CREATE FUNCTION list_grants(wanted_model text)
RETURNS TABLE (id text, tenant text, rights text[], answers text, max_items_per_day bigint,
               items_today bigint, created_at timestamptz, updated_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT g.id, t.name, g.rights, g.answers, g.max_items_per_day, coalesce(q.items, 0),
           g.created_at, g.updated_at
    FROM grants g
    JOIN tenants t ON t.id = g.grantee_id
    LEFT JOIN query_counts q ON q.tenant_id = g.grantee_id AND q.subject = g.model_id
        AND q.day = (now() AT TIME ZONE 'UTC')::date
    WHERE g.tenant_id = current_setting('app.tenant', true) AND g.model_id = wanted_model
$$
"""

# Both rows are locked before either is changed, the key's first: plans that meet wait for each
# other and are refused or counted one by one.
_SPEND_QUERIES = """
CREATE FUNCTION spend_queries(wanted_job text, wanted_items bigint)
RETURNS TABLE (refused_by text, max_items bigint, items_before bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    me text := current_setting('app.tenant', true);
    today date := (now() AT TIME ZONE 'UTC')::date;
    asked record;
    each record;
BEGIN
    IF wanted_items < 0 THEN
        RAISE EXCEPTION 'items are never given back' USING ERRCODE = 'check_violation';
    END IF;
    SELECT coalesce(k.line_id, k.id) AS line_id, b.max_items_per_day AS line_max,
           v.model_id, g.max_items_per_day AS model_max
    INTO asked
    FROM jobs j
    LEFT JOIN api_keys k ON k.id = j.key_id AND k.tenant_id = j.tenant_id
    LEFT JOIN key_budgets b ON b.line_id = coalesce(k.line_id, k.id) AND b.tenant_id = j.tenant_id
    LEFT JOIN model_versions v ON v.id = j.shared_version_id AND v.tenant_id <> j.tenant_id
    LEFT JOIN grants g ON g.model_id = v.model_id AND g.grantee_id = j.tenant_id
    WHERE j.id = wanted_job AND j.tenant_id = me;
    FOR each IN
        SELECT s.word, s.subject, s.most
        FROM (VALUES (1, 'key', CASE WHEN asked.line_max IS NOT NULL THEN asked.line_id END,
                      asked.line_max),
                     (2, 'model', asked.model_id, asked.model_max))
             AS s (place, word, subject, most)
        WHERE s.subject IS NOT NULL ORDER BY s.place
    LOOP
        INSERT INTO query_counts AS q (tenant_id, subject, day, items)
        VALUES (me, each.subject, today, 0) ON CONFLICT DO NOTHING;
        SELECT q.items INTO items_before FROM query_counts q
        WHERE q.tenant_id = me AND q.subject = each.subject AND q.day = today FOR UPDATE;
        IF items_before + wanted_items > each.most THEN
            refused_by := each.word;
            max_items := each.most;
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    UPDATE query_counts q SET items = q.items + wanted_items
    WHERE q.tenant_id = me AND q.day = today
      AND q.subject IN (CASE WHEN asked.line_max IS NOT NULL THEN asked.line_id END,
                        asked.model_id);
END
$$
"""

_FUNCTIONS = {
    "find_tenant(text)": _FIND_TENANT,
    "shared_versions(text, text, text)": _SHARED_VERSIONS,
    "shared_models()": _SHARED_MODELS,
    "list_grants(text)": _LIST_GRANTS,
    "spend_queries(text, bigint)": _SPEND_QUERIES,
}


def _id(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "grants",
        _id("id"),
        _id("tenant_id"),
        _id("model_id"),
        _id("grantee_id"),
        sa.Column("rights", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("answers", sa.Text(), nullable=False),
        sa.Column("max_items_per_day", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint(
            "rights <@ ARRAY['run', 'evaluate', 'export'] AND cardinality(rights) > 0",
            name=op.f("ck_grants_rights"),
        ),
        sa.CheckConstraint(
            "answers IN ('full', 'rounded', 'top1')", name=op.f("ck_grants_answers")
        ),
        sa.CheckConstraint("max_items_per_day > 0", name=op.f("ck_grants_max_items_per_day")),
        sa.CheckConstraint("grantee_id <> tenant_id", name=op.f("ck_grants_others")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_grants_tenant_id")),
        sa.ForeignKeyConstraint(["grantee_id"], ["tenants.id"], name=op.f("fk_grants_grantee_id")),
        # Who grants a right on a model must own it.
        sa.ForeignKeyConstraint(
            ["tenant_id", "model_id"],
            ["models.tenant_id", "models.id"],
            name=op.f("fk_grants_tenant_id_model_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("model_id", "grantee_id", name=op.f("uq_grants_model_id_grantee_id")),
    )
    op.create_index("ix_grants_grantee_id", "grants", ["grantee_id"])
    secure_table("grants")
    op.create_table(
        "key_budgets",
        _id("line_id"),
        _id("tenant_id"),
        sa.Column("max_items_per_day", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint("max_items_per_day > 0", name=op.f("ck_key_budgets_max_items_per_day")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "line_id"],
            ["api_keys.tenant_id", "api_keys.id"],
            name=op.f("fk_key_budgets_tenant_id_line_id"),
        ),
        sa.PrimaryKeyConstraint("line_id", name=op.f("pk_key_budgets")),
    )
    secure_table("key_budgets")
    op.create_table(
        "query_counts",
        _id("tenant_id"),
        _id("subject"),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_query_counts_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "subject", "day", name=op.f("pk_query_counts")),
    )
    op.create_index("ix_query_counts_day", "query_counts", ["day"])
    secure_table("query_counts")
    # Only spend_queries() writes, and only upwards.
    op.execute("REVOKE INSERT, UPDATE, DELETE ON query_counts FROM darkroom_api")
    op.add_column("jobs", sa.Column("key_id", sa.Text(collation="C"), nullable=True))
    op.add_column("jobs", sa.Column("shared_version_id", sa.Text(collation="C"), nullable=True))
    op.add_column("jobs", sa.Column("shared_version", postgresql.JSONB(), nullable=True))
    op.create_foreign_key(
        op.f("fk_jobs_tenant_id_key_id"),
        "jobs",
        "api_keys",
        ["tenant_id", "key_id"],
        ["tenant_id", "id"],
    )
    op.create_index(
        "ix_jobs_shared_version_id",
        "jobs",
        ["shared_version_id", "ended_at"],
        postgresql_where=sa.text("shared_version_id IS NOT NULL"),
    )
    op.create_check_constraint(
        op.f("ck_jobs_shared_version"),
        "jobs",
        "shared_version_id IS NULL OR (model_version_id IS NULL AND shared_version IS NOT NULL)",
    )
    for signature, statement in _FUNCTIONS.items():
        op.execute(statement)
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO darkroom_api")


def downgrade() -> None:
    for signature in reversed(_FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
    op.drop_column("jobs", "shared_version")
    op.drop_column("jobs", "shared_version_id")
    op.drop_column("jobs", "key_id")
    op.drop_table("query_counts")
    op.drop_table("key_budgets")
    op.drop_table("grants")
