"""From where the jobs of a tenant may read; NULL is as the setting says.

Deploy rule: must run while the previous release still serves. Add, backfill, and only in a
later release remove. Locks are bounded by the connection's lock_timeout of 5 s: a migration
that cannot get its lock fails and is run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("input_locations", ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "input_locations")
