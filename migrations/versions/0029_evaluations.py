"""Evaluations: a kind of job, the task that writes their reports, and what they fit for a version.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0029"
down_revision = "0028"

_KINDS = "'predict', {more}'finetune', 'export', 'ingest', 'import'"
_TIDIED = "'finetune', 'export', 'import'"


def upgrade() -> None:
    _set_words("'evaluate', ")
    _set_index(f"{_TIDIED}, 'evaluate'")
    op.add_column("model_versions", sa.Column("calibration", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    # The release before knows none of them, and cannot even read their kind.
    op.execute(
        "DELETE FROM items USING jobs WHERE items.job_id = jobs.id AND jobs.kind = 'evaluate'"
    )
    op.execute(
        "DELETE FROM evaluations USING jobs WHERE evaluations.job_id = jobs.id "
        "AND jobs.kind = 'evaluate'"
    )
    op.execute("DELETE FROM jobs WHERE kind = 'evaluate'")
    op.drop_column("model_versions", "calibration")
    _set_index(_TIDIED)
    _set_words("")


def _set_words(more: str) -> None:
    kinds = _KINDS.format(more=more)
    for table, column, words in (("jobs", "kind", kinds), ("chunks", "task", f"'plan', {kinds}")):
        name = op.f(f"ck_{table}_{column}")
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, f"{column} IN ({words})")


def _set_index(kinds: str) -> None:
    op.drop_index("ix_jobs_untidied", table_name="jobs")
    op.create_index(
        "ix_jobs_untidied",
        "jobs",
        ["ended_at"],
        postgresql_where=sa.text(
            f"tidied_at IS NULL AND ended_at IS NOT NULL AND kind IN ({kinds})"
        ),
    )
