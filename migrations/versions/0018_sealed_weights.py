"""Weights lie sealed: the version's wrapped data key, and the digest of the sealed object.

A weights file that became a version is ``imported``: the file as it was sent is deleted.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_STATES = "state IN ('receiving', 'stored', 'ready', 'failed'{more})"
_UNTIDY = (
    "tidied_at IS NULL AND (state IN ('receiving', 'failed'{more}) "
    "OR state = 'ready' AND kind = 'archive')"
)
_MORE = ", 'imported'"


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("sealed_key", sa.Text(), nullable=True))
    op.add_column("model_versions", sa.Column("sealed_sha256", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_model_versions_sealed"),
        "model_versions",
        "sealed_sha256 IS NULL OR sealed_key IS NOT NULL",
    )
    _set_states(_MORE)


def downgrade() -> None:
    # Sealed weights cannot be read without their keys: a downgrade would lose them.
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM model_versions WHERE sealed_sha256 IS NOT NULL) "
        "THEN RAISE EXCEPTION 'sealed weights would be lost'; END IF; END $$"
    )
    op.execute("UPDATE uploads SET state = 'failed' WHERE state = 'imported'")
    _set_states("")
    op.drop_constraint(op.f("ck_model_versions_sealed"), "model_versions")
    op.drop_column("model_versions", "sealed_sha256")
    op.drop_column("model_versions", "sealed_key")


def _set_states(more: str) -> None:
    op.drop_constraint(op.f("ck_uploads_state"), "uploads")
    op.create_check_constraint(op.f("ck_uploads_state"), "uploads", _STATES.format(more=more))
    op.drop_index("ix_uploads_untidied", table_name="uploads")
    op.create_index(
        "ix_uploads_untidied",
        "uploads",
        ["created_at"],
        postgresql_where=sa.text(_UNTIDY.format(more=more)),
    )
