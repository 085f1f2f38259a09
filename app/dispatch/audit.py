"""Chains the audit log, about once a second, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.audit.chain import BATCH, Chained, chain_entries
from app.audit.keys import AuditKeys
from app.clock import monotonic_seconds
from app.db.session import Database
from app.errors import UnavailableError
from app.log import get_logger
from app.settings import Settings

log = get_logger(__name__)

#: How long an entry may stand unchained, about: what is deleted before leaves no trace.
CHAIN_SECONDS = 1.0
#: A tenant's head is logged so often at most: a line elsewhere that no one can take back.
_LOG_SECONDS = 60.0


@contextmanager
def chaining(settings: Settings, db: Database, stopping: threading.Event) -> Iterator[None]:
    """Chain while the block runs; ends soon after ``stopping`` is set.

    Raises:
        SettingsError: no pepper, from which the audit log's key is derived.
    """
    keys = AuditKeys.from_settings(settings)
    thread = threading.Thread(target=_chain, args=(db, keys, stopping), name="audit")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _chain(db: Database, keys: AuditKeys, stopping: threading.Event) -> None:
    logged: dict[str, float] = {}
    while not stopping.is_set():
        seconds = CHAIN_SECONDS
        try:
            chained = chain_entries(db, keys)
            if chained.count == BATCH:
                seconds = 0
            _log_heads(chained, logged)
        except UnavailableError as error:
            log.warning("part_unavailable", code=error.code, detail=error.detail)
        except Exception:
            # As in the other loops: going on is safe, stopping would leave all unchained.
            log.exception("audit_chain_failed")
        stopping.wait(seconds)


def _log_heads(chained: Chained, logged: dict[str, float]) -> None:
    now = monotonic_seconds()
    for tenant_id, head in chained.heads.items():
        if now - logged.get(tenant_id, -_LOG_SECONDS) >= _LOG_SECONDS:
            logged[tenant_id] = now
            log.info("audit_head", tenant=tenant_id, head=str(head))
