"""Control of a job: pause, deadline, failure budget, retry; what chunks keep for them.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_ENDED = "'succeeded', 'partially_succeeded', 'failed', 'expired', 'cancelled'"
_ENDED_BEFORE = "'succeeded', 'partially_succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("max_failed_items", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("max_failed_fraction", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("stop_reason", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.Text(collation="C"), nullable=True))
    op.add_column("jobs", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(op.f("fk_jobs_retry_of"), "jobs", "jobs", ["retry_of"], ["id"])
    op.create_check_constraint(
        op.f("ck_jobs_stop_reason"), "jobs", "stop_reason IN ('cancel', 'deadline', 'failures')"
    )
    _replace_check(
        "jobs",
        "state",
        "state IN ('validating', 'queued', 'running', 'finalizing', 'paused', 'cancelling', 'succeeded', 'partially_succeeded', 'failed', 'expired', 'cancelled')",
    )
    _replace_check("jobs", "ended", f"(ended_at IS NOT NULL) = (state IN ({_ENDED}))")
    _replace_check(
        "jobs",
        "counts",
        "succeeded >= 0 AND failed >= 0 AND skipped >= 0 AND cancelled >= 0 AND expired >= 0 AND (sealed_at IS NULL OR succeeded + failed + skipped + cancelled + expired <= total)",
    )
    op.drop_index("ix_jobs_open", table_name="jobs")
    op.create_index(
        "ix_jobs_open", "jobs", ["state"], postgresql_where=sa.text(f"state NOT IN ({_ENDED})")
    )
    op.create_index(
        "ix_jobs_deadline_at",
        "jobs",
        ["deadline_at"],
        postgresql_where=sa.text("ended_at IS NULL AND deadline_at IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_retry_of",
        "jobs",
        ["retry_of"],
        postgresql_where=sa.text("retry_of IS NOT NULL"),
    )
    op.add_column(
        "chunks", sa.Column("first_item", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column("chunks", sa.Column("faults", sa.Integer(), server_default="0", nullable=False))
    # Until now a chunk kept the references of its own items alone.
    op.execute("UPDATE chunks SET first_item = lo")
    _replace_check(
        "chunks", "state", "state IN ('pending', 'running', 'done', 'expired', 'cancelled')"
    )


def downgrade() -> None:
    _replace_check("chunks", "state", "state IN ('pending', 'running', 'done', 'cancelled')")
    op.drop_column("chunks", "faults")
    op.drop_column("chunks", "first_item")
    op.drop_index("ix_jobs_retry_of", table_name="jobs")
    op.drop_index("ix_jobs_deadline_at", table_name="jobs")
    op.drop_index("ix_jobs_open", table_name="jobs")
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["state"],
        postgresql_where=sa.text(f"state NOT IN ({_ENDED_BEFORE})"),
    )
    _replace_check(
        "jobs",
        "counts",
        "succeeded >= 0 AND failed >= 0 AND skipped >= 0 AND cancelled >= 0 AND (sealed_at IS NULL OR succeeded + failed + skipped + cancelled <= total)",
    )
    _replace_check("jobs", "ended", f"(ended_at IS NOT NULL) = (state IN ({_ENDED_BEFORE}))")
    _replace_check(
        "jobs",
        "state",
        "state IN ('validating', 'queued', 'running', 'finalizing', 'cancelling', 'succeeded', 'partially_succeeded', 'failed', 'cancelled')",
    )
    for column in (
        "paused_at",
        "retry_of",
        "stop_reason",
        "max_failed_fraction",
        "max_failed_items",
        "deadline_at",
        "expired",
    ):
        op.drop_column("jobs", column)


def _replace_check(table: str, name: str, condition: str) -> None:
    full_name = op.f(f"ck_{table}_{name}")
    op.drop_constraint(full_name, table, type_="check")
    op.create_check_constraint(full_name, table, condition)
