"""The hold on deletions: while a backup runs, objects that its snapshot names must stay.

Who deletes an object does three things in this order: commit that no row needs it any more,
ask :func:`deletions_held` in a transaction of its own, and only then delete. A backup takes the
hold before its snapshot. So a deleter that saw no hold committed before any snapshot that comes
after, and whatever a snapshot still names is not deleted before it was copied. Nobody waits for
anybody, and the lock dies with the connection of the backup.
"""

from __future__ import annotations

from sqlalchemy import text

from app.db.session import Database

#: The lock's name; a backup holds ``hashtext`` of it exclusively.
HOLD = "darkroom.backup"


def deletions_held(db: Database) -> bool:
    """Whether a backup runs: what could be deleted now is left for a later clean-up."""
    with db.anonymous() as session:
        free = session.scalar(
            text("SELECT pg_try_advisory_xact_lock_shared(hashtext(:name))"), {"name": HOLD}
        )
    return not free
