"""The dispatcher's other loop: events to deliveries, deliveries to receivers.

In threads of its own, so that a slow receiver delays neither bells nor sweep; and no tenant
takes all of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from app.db.session import Database
from app.dispatch.fan_out import BATCH, fan_out
from app.errors import UnavailableError
from app.keyring import Keyring
from app.log import get_logger
from app.settings import Settings
from app.webhooks.claim import Claimed, claim_delivery
from app.webhooks.deliver import deliver
from app.webhooks.guard import Guard

log = get_logger(__name__)

#: Pause after the database did not answer.
_PAUSE_SECONDS = 1.0
#: Slots that one tenant's receivers may hold: a fourth, whatever they do.
_SHARE = 4
#: Part of those that one webhook may hold, where there is more than one: half.
_WEBHOOK_SHARE = 2


@contextmanager
def notifying(settings: Settings, db: Database, stopping: threading.Event) -> Iterator[None]:
    """Deliver events while the block runs; ends soon after ``stopping`` is set."""
    thread = threading.Thread(target=_notify, args=(settings, db, stopping), name="notify")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _notify(settings: Settings, db: Database, stopping: threading.Event) -> None:
    with ThreadPoolExecutor(settings.webhook_slots, thread_name_prefix="webhook") as threads:
        senders = _Senders(settings, db, threads)
        while not stopping.is_set():
            seconds = settings.dispatch_seconds
            try:
                if fan_out(db) == BATCH:
                    seconds = 0
                senders.send_due(stopping)
            except UnavailableError as error:
                log.warning("part_unavailable", code=error.code, detail=error.detail)
                seconds = _PAUSE_SECONDS
            except Exception:
                # As in the other loop: going on is safe, stopping would silence everyone.
                log.exception("notify_failed")
                seconds = _PAUSE_SECONDS
            stopping.wait(seconds)


class _Senders:
    """The threads that POST, and whose deliveries they are busy with."""

    def __init__(self, settings: Settings, db: Database, threads: ThreadPoolExecutor) -> None:
        self._guard = Guard.from_settings(settings)
        self._keyring = Keyring.from_settings(settings)
        self._failing_days = settings.webhook_failing_days
        self._db = db
        self._threads = threads
        self._slots = settings.webhook_slots
        self._share = max(1, self._slots // _SHARE)
        self._webhook_share = max(1, self._share // _WEBHOOK_SHARE)
        #: By tenant, and by webhook.
        self._sending: Counter[str] = Counter()
        self._webhooks: Counter[str] = Counter()
        self._lock = threading.Lock()

    def send_due(self, stopping: threading.Event) -> None:
        """Claim what is due while there are free slots, and hand it to the threads."""
        while not stopping.is_set():
            with self._lock:
                if self._sending.total() >= self._slots:
                    return
                busy = [tenant for tenant, count in self._sending.items() if count >= self._share]
                busy_webhooks = [
                    webhook
                    for webhook, count in self._webhooks.items()
                    if count >= self._webhook_share
                ]
            with self._db.system() as session:
                claimed = claim_delivery(session, busy=busy, busy_webhooks=busy_webhooks)
            if claimed is None:
                return
            self._count(claimed, 1)
            self._threads.submit(self._deliver, claimed)

    def _deliver(self, claimed: Claimed) -> None:
        try:
            outcome = deliver(
                self._db,
                claimed,
                self._guard,
                self._keyring,
                failing_days=self._failing_days,
            )
            log.info(
                "webhook_sent",
                webhook=claimed.webhook_id,
                delivery=claimed.id,
                attempt=claimed.attempt,
                status=outcome.status,
                error=outcome.error,
            )
        except UnavailableError as error:
            # Sent or not, it is not recorded: the lease ends, and it is sent again.
            log.warning("part_unavailable", code=error.code, detail=error.detail)
        except Exception:
            log.exception("webhook_failed", delivery=claimed.id)
        finally:
            self._count(claimed, -1)

    def _count(self, claimed: Claimed, change: int) -> None:
        with self._lock:
            for counter, key in (
                (self._sending, claimed.tenant_id),
                (self._webhooks, claimed.webhook_id),
            ):
                counter[key] += change
                if not counter[key]:
                    # Or it would grow with every webhook there ever was.
                    del counter[key]
