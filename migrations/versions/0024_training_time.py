"""How long workers trained for each tenant, and a quota on it.

A trigger writes an attempt's time as its chunk leaves ``running``, whoever moves it: the worker that
ends or gives it back, the sweeper after a kill, a process of the release before. A killed attempt
counts to the end of its lease at most.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.security import secure_table

revision = "0024"
down_revision = "0023"

_REASONS = "stop_reason IN ('cancel', 'deadline', 'failures'{more})"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("max_training_minutes", sa.BigInteger(), nullable=True))
    _set_reasons(", 'training_minutes'")
    op.create_table(
        "training_time",
        sa.Column("chunk_id", sa.Text(collation="C"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Text(collation="C"), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("began_at <= ended_at", name=op.f("ck_training_time_order")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_training_time_tenant_id")
        ),
        sa.PrimaryKeyConstraint("chunk_id", "attempt", name=op.f("pk_training_time")),
    )
    op.create_index(
        "ix_training_time_tenant_id_ended_at", "training_time", ["tenant_id", "ended_at"]
    )
    op.create_index("ix_training_time_ended_at", "training_time", ["ended_at"])
    secure_table("training_time")
    # The trigger writes it and the clean-up deletes it: nobody counts time away.
    op.execute("REVOKE INSERT, UPDATE, DELETE ON training_time FROM darkroom_api")
    op.execute(
        """
        CREATE FUNCTION note_training_time()
        RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
        AS $$
        BEGIN
            INSERT INTO training_time (chunk_id, attempt, tenant_id, job_id, began_at, ended_at)
            VALUES (OLD.id, OLD.attempt, OLD.tenant_id, OLD.job_id, OLD.running_at,
                    greatest(OLD.running_at, least(now(), OLD.lease_until)))
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION note_training_time() FROM PUBLIC")
    op.execute(
        """
        CREATE TRIGGER note_training_time
        AFTER UPDATE OF state ON chunks
        FOR EACH ROW WHEN (OLD.task = 'finetune' AND OLD.state = 'running'
                           AND NEW.state <> 'running' AND OLD.running_at IS NOT NULL)
        EXECUTE FUNCTION note_training_time()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER note_training_time ON chunks")
    op.execute("DROP FUNCTION note_training_time()")
    op.drop_table("training_time")
    op.execute("UPDATE jobs SET stop_reason = 'cancel' WHERE stop_reason = 'training_minutes'")
    _set_reasons("")
    op.drop_column("tenants", "max_training_minutes")


def _set_reasons(more: str) -> None:
    op.drop_constraint(op.f("ck_jobs_stop_reason"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_stop_reason"), "jobs", _REASONS.format(more=more))
