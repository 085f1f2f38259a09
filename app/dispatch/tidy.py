"""Deletes the checkpoints of fine-tunings that have ended, however they ended.

In a thread of its own beside the dispatcher's loop: an object store that hangs must not keep
bells and sweeps waiting. Any number may run; deleting what is gone is fine.
"""

from __future__ import annotations

import threading

from sqlalchemy import select, text, update

from app.db.hold import deletions_held
from app.db.session import Database
from app.errors import UnavailableError
from app.jobs.tables import UNTIDY, Chunk
from app.log import get_logger
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore

log = get_logger(__name__)

#: Jobs whose objects one round deletes.
_BATCH = 50
#: Pause after the store or the database did not answer.
_PAUSE_SECONDS = 10.0


def tidy_once(db: Database, store: ObjectStore, bucket: str) -> int:
    """Delete all checkpoints of ended fine-tunings, by prefix; how many jobs were tidied.

    By prefix, because an attempt that died may have stored what no cursor ever named. The
    cursor is emptied last: a job whose checkpoints may still lie there is found again. While a
    backup runs nothing is deleted: its snapshot may still see such a job open.

    Raises:
        UnavailableError: the database or the store does not answer.
    """
    with db.system() as session:
        ended = session.execute(
            select(Chunk.id, Chunk.tenant_id, Chunk.job_id).where(text(UNTIDY)).limit(_BATCH)
        ).all()
    if not ended or deletions_held(db):
        return 0
    for chunk in ended:
        prefix = keys.checkpoint_prefix(chunk.tenant_id, chunk.job_id)
        store.delete(bucket, [found.key for found in store.list(bucket, prefix)])
        with db.system() as session:
            session.execute(
                update(Chunk)
                .where(Chunk.id == chunk.id)
                .values(cursor=None)
                .execution_options(synchronize_session=False)
            )
    return len(ended)


def tidy_loop(
    settings: Settings, db: Database, store: ObjectStore, stopping: threading.Event
) -> None:
    """Tidy at each sweep's pace until ``stopping`` is set."""
    pause = 0.0
    while not stopping.wait(pause):
        pause = settings.sweep_seconds
        try:
            if tidied := tidy_once(db, store, settings.bucket):
                log.info("checkpoints_deleted", jobs=tidied)
        except UnavailableError as error:
            log.warning("part_unavailable", code=error.code, detail=error.detail)
            pause = _PAUSE_SECONDS
        except Exception:
            # Going on is always safe; ending would leave the objects for ever.
            log.exception("tidy_failed")
            pause = _PAUSE_SECONDS
