"""Every secret that the sealing keys seal: what lies under which key, and the next key for all.

Whoever adds a column of sealed secrets adds it here, so that status and rotation know it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.audit.actions import Action
from app.audit.append import append_entry
from app.audit.keys import AuditKey
from app.db.session import Database
from app.keyring import Keyring
from app.models.weights import VERSION_KEYS
from app.sealing.columns import (
    ColumnStatus,
    Rotated,
    SealedColumn,
    count_column,
    rotate_column,
)
from app.webhooks.secrets import PREVIOUS_WEBHOOK_SECRETS, WEBHOOK_SECRETS

SEALED_COLUMNS: tuple[SealedColumn, ...] = (
    VERSION_KEYS,
    WEBHOOK_SECRETS,
    PREVIOUS_WEBHOOK_SECRETS,
)


def sealing_status(db: Database) -> list[ColumnStatus]:
    """For each column how many of its secrets each key seals, and how many lie in clear.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        return [count_column(session, column) for column in SEALED_COLUMNS]


def rotate(db: Database, keyring: Keyring, audit_key: AuditKey) -> list[Rotated]:
    """Seal every secret again under the active key; see :func:`rotate_column`.

    The audit log of each tenant tells of each batch that touched its rows.

    Raises:
        UnavailableError: the database does not answer; begin again, and it goes on.
    """

    def tell(session: Session, name: str, tenants: Mapping[str, int]) -> None:
        for tenant_id, count in tenants.items():
            append_entry(
                session,
                audit_key,
                tenant_id=tenant_id,
                action=Action.SEALING_ROTATED,
                target=keyring.active_id,
                details={"what": name, "count": count},
            )

    return [rotate_column(db, keyring, column, tell) for column in SEALED_COLUMNS]
