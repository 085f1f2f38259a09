"""Searches: a kind of job, the task of its trials, and what each trial showed.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.security import secure_table

revision = "0032"
down_revision = "0031"

_KINDS = "'predict', 'evaluate', 'finetune', {more}'export', 'ingest', 'import'"
_TIDIED = "'finetune', 'export', 'import', 'evaluate'"


def upgrade() -> None:
    _set_words(kind="'search', ", task="'trial', ")
    _set_indexes(kinds=f"{_TIDIED}, 'search'", task="task IN ('finetune', 'trial')")
    _set_trigger("OLD.task IN ('finetune', 'trial')")
    op.create_table(
        "trials",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("parameters", postgresql.JSONB(), nullable=False),
        sa.Column(
            "epochs", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_trials_tenant_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_trials")),
    )
    secure_table("trials")


def downgrade() -> None:
    op.drop_table("trials")
    _set_trigger("OLD.task = 'finetune'")
    # The release before knows none of them, and cannot even read their kind. What they made stays.
    op.execute("DELETE FROM items USING jobs WHERE items.job_id = jobs.id AND jobs.kind = 'search'")
    op.execute(
        "DELETE FROM evaluations USING jobs WHERE evaluations.job_id = jobs.id "
        "AND jobs.kind = 'search'"
    )
    op.execute(
        "UPDATE model_versions SET job_id = NULL, "
        "state = CASE WHEN model_versions.state = 'pending' THEN 'failed' "
        "ELSE model_versions.state END "
        "FROM jobs WHERE model_versions.job_id = jobs.id AND jobs.kind = 'search'"
    )
    op.execute("DELETE FROM jobs WHERE kind = 'search'")
    _set_indexes(kinds=_TIDIED, task="task = 'finetune'")
    _set_words(kind="", task="")


def _set_words(*, kind: str, task: str) -> None:
    tasks = f"'plan', {_KINDS.format(more=task)}"
    for table, column, words in (
        ("jobs", "kind", _KINDS.format(more=kind)),
        ("chunks", "task", tasks),
    ):
        name = op.f(f"ck_{table}_{column}")
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, f"{column} IN ({words})")


def _set_indexes(*, kinds: str, task: str) -> None:
    op.drop_index("ix_jobs_untidied", table_name="jobs")
    op.create_index(
        "ix_jobs_untidied",
        "jobs",
        ["ended_at"],
        postgresql_where=sa.text(
            f"tidied_at IS NULL AND ended_at IS NOT NULL AND kind IN ({kinds})"
        ),
    )
    op.drop_index("ix_chunks_untidy", table_name="chunks")
    op.create_index(
        "ix_chunks_untidy",
        "chunks",
        ["id"],
        postgresql_where=sa.text(
            f"{task} AND cursor IS NOT NULL AND state NOT IN ('pending', 'running')"
        ),
    )


def _set_trigger(is_training: str) -> None:
    op.execute("DROP TRIGGER note_training_time ON chunks")
    op.execute(
        f"""
        CREATE TRIGGER note_training_time
        AFTER UPDATE OF state ON chunks
        FOR EACH ROW WHEN ({is_training} AND OLD.state = 'running'
                           AND NEW.state <> 'running' AND OLD.running_at IS NOT NULL)
        EXECUTE FUNCTION note_training_time()
        """
    )
