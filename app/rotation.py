"""Every secret that the sealing keys seal: what lies under which key, and the next key for all.

Whoever adds a column of sealed secrets adds it here, so that status and rotation know it.
"""

from __future__ import annotations

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

SEALED_COLUMNS: tuple[SealedColumn, ...] = (VERSION_KEYS,)


def sealing_status(db: Database) -> list[ColumnStatus]:
    """For each column how many of its secrets each key seals, and how many lie in clear.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        return [count_column(session, column) for column in SEALED_COLUMNS]


def rotate(db: Database, keyring: Keyring) -> list[Rotated]:
    """Seal every secret again under the active key; see :func:`rotate_column`.

    Raises:
        UnavailableError: the database does not answer; begin again, and it goes on.
    """
    return [rotate_column(db, keyring, column) for column in SEALED_COLUMNS]
