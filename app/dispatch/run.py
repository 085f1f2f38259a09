"""The dispatcher, run as ``python -m app.dispatch.run``.

One loop relays bells and sweeps, another delivers events to webhooks, a third cleans up, a
fourth chains the audit log.

Any number may run. It keeps nothing in memory that matters: killed at any point, the next
loop of this or another dispatcher goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType

from celery import Celery

from app.alive import show_alive
from app.audit.keys import AuditKeys
from app.clock import monotonic_seconds
from app.db.schema import require_schema
from app.db.session import Database
from app.dispatch.audit import chaining
from app.dispatch.cleanup import Cleanup
from app.dispatch.gauges import DispatcherGauges
from app.dispatch.leases import LeaseEnds
from app.dispatch.notify import notifying
from app.dispatch.relay import relay_once
from app.dispatch.sweep import sweep_once
from app.errors import SettingsError, UnavailableError
from app.gauges import serve_gauges
from app.log import configure_logging, get_logger
from app.queues.celery import make_celery
from app.settings import Settings, load_settings
from app.startup import check_start
from app.storage.s3 import ObjectStore

log = get_logger(__name__)

#: Pause after the database or Redis did not answer.
_PAUSE_SECONDS = 1.0
_JOIN_SECONDS = 5.0


def run_loop(
    settings: Settings,
    db: Database,
    celery: Celery,
    stopping: threading.Event,
    gauges: DispatcherGauges | None = None,
) -> None:
    """Relay, sweep, notify, clean up until ``stopping`` is set; survives the loss of every part."""
    gauges = gauges or DispatcherGauges(settings, db)
    store = ObjectStore.from_settings(settings)
    cleanup = Cleanup(db, store, settings, stopping, gauges.add_round)
    cleanup.start()
    try:
        with chaining(settings, db, stopping), notifying(settings, db, stopping):
            _relay_and_sweep(settings, db, celery, stopping, gauges)
    finally:
        # Bounded: a store that hangs must not keep the process, and nothing is lost.
        cleanup.join(_JOIN_SECONDS)


def _relay_and_sweep(
    settings: Settings,
    db: Database,
    celery: Celery,
    stopping: threading.Event,
    gauges: DispatcherGauges,
) -> None:
    relay_due = sweep_due = 0.0
    leases = LeaseEnds(settings.lease_seconds)
    while not stopping.is_set():
        # Apart, because a cancelled job must end although no bell can be rung.
        if monotonic_seconds() >= relay_due:
            well = _survive(lambda: _relay(settings, db, celery, gauges))
            relay_due = monotonic_seconds() + (0 if well else _PAUSE_SECONDS)
        if monotonic_seconds() >= sweep_due:
            well = _survive(lambda: _sweep(settings, db, gauges, leases))
            sweep_due = monotonic_seconds() + (settings.sweep_seconds if well else _PAUSE_SECONDS)
        stopping.wait(settings.dispatch_seconds)


def _relay(settings: Settings, db: Database, celery: Celery, gauges: DispatcherGauges) -> None:
    rung = relay_once(
        db,
        celery,
        ring_again_seconds=settings.ring_again_seconds,
        alive_seconds=3 * settings.heartbeat_seconds,
    )
    gauges.bells.inc(rung)
    if rung:
        log.debug("bells_rung", bells=rung)


def _sweep(settings: Settings, db: Database, gauges: DispatcherGauges, leases: LeaseEnds) -> None:
    swept = sweep_once(
        db,
        max_kills=settings.max_kills,
        max_training_minutes=settings.max_training_minutes,
        free=leases.free,
    )
    gauges.add_sweep(swept)
    if swept:
        log.info("swept", **asdict(swept))
    show_alive(settings.alive_file)


def _survive(step: Callable[[], None]) -> bool:
    """Run the step; whether it went well.

    Sweep and relay only repeat guarded updates: going on is always safe, stopping would stop
    every job.
    """
    try:
        step()
    except UnavailableError as error:
        log.warning("part_unavailable", code=error.code, detail=error.detail)
    except Exception:
        log.exception("dispatch_failed")
    else:
        return True
    return False


def _check(settings: Settings, db: Database, celery: Celery, stopping: threading.Event) -> bool:
    """Whether schema and parts are as they must be; waits for a database that is not up yet."""
    while not stopping.is_set():
        try:
            require_schema(db)
            check_start(settings, db, celery)
            AuditKeys.from_settings(settings)
        except UnavailableError as error:
            log.warning("part_unavailable", code=error.code, detail=error.detail)
            stopping.wait(_PAUSE_SECONDS)
        except SettingsError as error:
            log.error("dispatcher_not_started", code=error.code, detail=error.detail)
            return False
        else:
            return True
    return True


def main() -> None:
    """Run the dispatcher until SIGTERM or SIGINT.

    Exits with 1 on a schema of another version, and on parts that are not durable.
    """
    settings = load_settings()
    configure_logging(settings.log_level, json=settings.log_format == "json")
    # Refuses to start without the system role, rather than at the first sweep.
    assert settings.system_url
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    db = Database.from_settings(settings)
    celery = make_celery(settings)
    try:
        if not _check(settings, db, celery, stopping):
            raise SystemExit(1)
        log.info("dispatcher_started")
        gauges = DispatcherGauges(settings, db)
        serve_gauges(settings, gauges.registry)
        run_loop(settings, db, celery, stopping, gauges)
    finally:
        celery.close()
        db.close()
        log.info("dispatcher_stopped")


if __name__ == "__main__":
    main()
