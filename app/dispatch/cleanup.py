"""The slow part of the dispatcher, in a thread of its own: recounts jobs and cleans up.

A store that hangs, or a job of a million items, must not hold up a bell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass

from app.clock import monotonic_seconds
from app.db.session import Database
from app.dispatch import cleanup_objects, cleanup_rows, cleanup_weights
from app.dispatch.drift import recount_jobs
from app.errors import DarkroomError
from app.log import get_logger
from app.settings import Settings
from app.storage.s3 import ObjectStore

log = get_logger(__name__)

#: Time between two rounds. A full round looks at every open job once.
ROUND_SECONDS = 60.0
#: A step with a backlog goes on for so long in one round.
_STEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What one round did."""

    #: Jobs whose counters were off; always 0 unless a rule was broken.
    repaired: int = 0
    #: Jobs of which items are missing; always 0 unless a rule was broken.
    torn: int = 0
    rows: int = 0
    uploads: int = 0
    #: Fine-tunings whose checkpoints were deleted.
    checkpoints: int = 0
    jobs: int = 0
    multiparts: int = 0

    def __bool__(self) -> bool:
        return any(astuple(self))


class Cleanup:
    """One thread that cleans up every minute; any number of dispatchers may have one."""

    def __init__(
        self,
        db: Database,
        store: ObjectStore,
        settings: Settings,
        stopping: threading.Event,
        on_round: Callable[[Cleaned], None] = lambda _: None,
    ) -> None:
        self._db = db
        self._store = store
        self._bucket = settings.bucket
        self._event_days = settings.event_days
        self._upload_days = settings.weights_upload_days
        self._stopping = stopping
        self._on_round = on_round
        self._thread = threading.Thread(target=self._run, name="cleanup", daemon=True)

    def start(self) -> None:
        """Begin with a round in a minute."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the round under way, once ``stopping`` is set; what it leaves comes again."""
        self._thread.join(seconds)

    def clean_once(self) -> Cleaned:
        """One round; what fails is left for the next."""
        db, store, bucket = self._db, self._store, self._bucket
        rows, objects = cleanup_rows, cleanup_objects
        repaired, torn = self._recount()
        self._drain(objects.BATCH, lambda: objects.give_up_uploads(db))
        self._drain(
            cleanup_weights.BATCH,
            lambda: cleanup_weights.give_up_weights(db, upload_days=self._upload_days),
        )
        self._drain(
            cleanup_weights.BATCH, lambda: cleanup_weights.delete_given_up(db, store, bucket)
        )
        return Cleaned(
            repaired=repaired,
            torn=torn,
            rows=self._drain(rows.BATCH, lambda: rows.clean_rows(db, event_days=self._event_days)),
            uploads=self._drain(objects.BATCH, lambda: objects.tidy_uploads(db, store, bucket)),
            checkpoints=self._drain(
                objects.BATCH, lambda: objects.tidy_checkpoints(db, store, bucket)
            ),
            jobs=self._drain(objects.BATCH, lambda: objects.tidy_jobs(db, store, bucket)),
            multiparts=self._try(lambda: objects.tidy_multiparts(db, store, bucket)),
        )

    def _recount(self) -> tuple[int, int]:
        repaired = torn = 0
        after: str | None = None
        while not self._stopping.is_set():
            try:
                found = recount_jobs(self._db, after)
            except DarkroomError as error:
                log.warning("recount_failed", code=error.code, detail=error.detail)
                break
            except Exception:
                # The round goes on: an end of this thread would end all clean-up unseen.
                log.exception("recount_failed")
                break
            repaired += found.repaired
            torn += found.torn
            after = found.after
            if after is None:
                break
        return repaired, torn

    def _drain(self, batch: int, step: Callable[[], int]) -> int:
        """Repeat a step for as long as it does a whole batch: a minute may bring more than one.

        Not for ever, so that the other steps have their turn beside a backlog.
        """
        until, done = monotonic_seconds() + _STEP_SECONDS, 0
        while True:
            count = self._try(step)
            done += count
            if count < batch or monotonic_seconds() >= until:
                return done

    def _try(self, step: Callable[[], int]) -> int:
        if self._stopping.is_set():
            return 0
        try:
            return step()
        except DarkroomError as error:
            log.warning("cleanup_failed", code=error.code, detail=error.detail)
        except Exception:
            log.exception("cleanup_failed")
        return 0

    def _run(self) -> None:
        while not self._stopping.wait(ROUND_SECONDS):
            cleaned = self.clean_once()
            self._on_round(cleaned)
            if cleaned:
                log.info("cleaned", **{name: getattr(cleaned, name) for name in Cleaned.__slots__})
