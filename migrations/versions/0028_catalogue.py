"""The catalogue: gates before aliases, every move of an alias, and how good versions were.

Versions may be deleted: the row stays, the weights go. Aliases of before have no moves, so the
first roll-back of one of them is refused until it has moved again.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0028"
down_revision = "0027"

_STATES = "'pending', 'ready', 'archived', 'failed'"


def _id(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _of_same_tenant(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        [f"{other}.tenant_id", f"{other}.id"],
        name=op.f(f"fk_{table}_tenant_id_{column}"),
    )


def _of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id")
    )


def upgrade() -> None:
    op.create_table(
        "alias_moves",
        _id("id"),
        _id("tenant_id"),
        _id("model_id"),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        _id("from_version_id", nullable=True),
        _id("to_version_id"),
        sa.Column("verdict", postgresql.JSONB(), nullable=True),
        _moment("created_at"),
        sa.CheckConstraint(
            "kind IN ('moved', 'promoted', 'rolled_back')", name=op.f("ck_alias_moves_kind")
        ),
        _of_tenant("alias_moves"),
        _of_same_tenant("alias_moves", "model_id", "models"),
        _of_same_tenant("alias_moves", "from_version_id", "model_versions"),
        _of_same_tenant("alias_moves", "to_version_id", "model_versions"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    op.create_index("ix_alias_moves_model_id_alias_id", "alias_moves", ["model_id", "alias", "id"])
    op.create_table(
        "gates",
        _id("model_id"),
        sa.Column("alias", sa.Text(), nullable=False),
        _id("tenant_id"),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("margin", sa.Double(), nullable=False),
        sa.Column("minimum", sa.Double(), nullable=True),
        _id("dataset_id", nullable=True),
        _moment("created_at"),
        _moment("updated_at"),
        _of_tenant("gates"),
        _of_same_tenant("gates", "model_id", "models"),
        _of_same_tenant("gates", "dataset_id", "datasets"),
        sa.PrimaryKeyConstraint("model_id", "alias", name=op.f("pk_gates")),
    )
    op.create_table(
        "evaluations",
        _id("id"),
        _id("tenant_id"),
        _id("model_version_id"),
        _id("dataset_version_id"),
        sa.Column("split", sa.Text(), nullable=True),
        _id("job_id"),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        _moment("created_at"),
        sa.CheckConstraint(
            "split IS NULL OR split IN ('train', 'validation', 'test')",
            name=op.f("ck_evaluations_split"),
        ),
        _of_tenant("evaluations"),
        _of_same_tenant("evaluations", "model_version_id", "model_versions"),
        _of_same_tenant("evaluations", "dataset_version_id", "dataset_versions"),
        _of_same_tenant("evaluations", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index("ix_evaluations_model_version_id_id", "evaluations", ["model_version_id", "id"])
    for table in ("alias_moves", "gates", "evaluations"):
        secure_table(table)
    # What was, was: the API adds to both and changes nothing in them.
    op.execute("REVOKE UPDATE, DELETE ON alias_moves, evaluations FROM darkroom_api")
    op.drop_constraint(op.f("ck_model_versions_state"), "model_versions")
    op.create_check_constraint(
        op.f("ck_model_versions_state"), "model_versions", f"state IN ({_STATES}, 'deleted')"
    )
    op.add_column("model_versions", sa.Column("macs", sa.BigInteger(), nullable=True))
    for column in ("delete_asked_at", "deleted_at"):
        op.add_column(
            "model_versions", sa.Column(column, sa.DateTime(timezone=True), nullable=True)
        )
    op.create_index(
        "ix_model_versions_given_up",
        "model_versions",
        ["delete_asked_at"],
        postgresql_where=sa.text("delete_asked_at IS NOT NULL AND weights_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_model_versions_given_up", "model_versions")
    op.drop_column("model_versions", "deleted_at")
    op.drop_column("model_versions", "delete_asked_at")
    op.drop_column("model_versions", "macs")
    op.execute("UPDATE model_versions SET state = 'failed' WHERE state = 'deleted'")
    op.drop_constraint(op.f("ck_model_versions_state"), "model_versions")
    op.create_check_constraint(
        op.f("ck_model_versions_state"), "model_versions", f"state IN ({_STATES})"
    )
    for table in ("evaluations", "gates", "alias_moves"):
        op.drop_table(table)
