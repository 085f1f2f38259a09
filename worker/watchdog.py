"""Ends a worker that has come to a standstill, so that whoever supervises it starts another.

Threads know no time limits: a forward pass or a read that hangs would keep its lease for ever,
and a consumer that lost its broker may sit beside a full queue and hear nothing. Both are seen
from outside the thread that hangs, and cured by the end of the process.
"""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

from app.clock import monotonic_seconds
from app.log import get_logger
from app.queues.address import redis_py_url
from worker.exits import ExitCode, all_stacks, leave

if TYPE_CHECKING:
    from worker.process import WorkerProcess

log = get_logger(__name__)

_LOOK_SECONDS = 1.0
#: A process whose threads get no turn at all, because one keeps the interpreter's lock, is ended
#: from outside of it so long after the stall time.
_GRACE_SECONDS = 60.0


class Hearing:
    """The bells that this process has heard, and those it is answering; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.busy = 0
        self.heard = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a bell as heard, and a slot as busy for as long as the block runs."""
        with self._lock:
            self.heard += 1
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1


class Deafness:
    """Tells a deaf worker: bells wait, a slot is free, and none is heard for too long."""

    def __init__(self, hearing: Hearing, slots: int, limit_seconds: float) -> None:
        self._hearing = hearing
        self._slots = slots
        self._limit_seconds = limit_seconds
        self._since: float | None = None
        self._heard = 0

    @property
    def has_free_slot(self) -> bool:
        """Whether the worker could answer one more bell."""
        return self._hearing.busy < self._slots

    def look(self, now: float, waiting: int | None) -> bool:
        """Whether it is deaf by now; ``waiting`` bells lie in its queue, None if unknown."""
        heard = self._hearing.heard
        if not waiting or not self.has_free_slot:
            self._since = None
        elif self._since is None or heard != self._heard:
            self._since = now
        self._heard = heard
        return self._since is not None and now - self._since >= self._limit_seconds


class Watchdog:
    """One thread that looks at the process's leases and its queue every second."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        settings = process.settings
        self._stall_seconds = settings.stall_seconds
        self._pause = min(_LOOK_SECONDS, settings.stall_seconds / 4, settings.deaf_seconds / 4)
        self._deafness = Deafness(process.hearing, process.slots, settings.deaf_seconds)
        self._redis = Redis.from_url(
            redis_py_url(settings.redis_url.get_secret_value()),
            socket_timeout=5,
            socket_connect_timeout=5,
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        faulthandler.cancel_dump_traceback_later()
        self._redis.close()

    def _run(self) -> None:
        while not self._closing.wait(self._pause):
            # Set anew each time: it strikes only where this thread gets no turn any more.
            faulthandler.dump_traceback_later(self._stall_seconds + _GRACE_SECONDS, exit=True)
            try:
                self._look()
            except Exception:
                log.exception("watchdog_failed")

    def _look(self) -> None:
        stalled = self._process.heartbeat.stalled(self._stall_seconds)
        if stalled is not None:
            lease, seconds = stalled
            log.critical(
                "worker_stalled",
                job=lease.job_id,
                chunk=lease.chunk_id,
                attempt=lease.attempt,
                seconds=round(seconds, 1),
                stacks=all_stacks(),
            )
            leave(ExitCode.STALLED)
        if self._process.stopping.is_set():
            return
        if self._deafness.look(monotonic_seconds(), self._waiting_bells()):
            self._end_deaf()

    def _waiting_bells(self) -> int | None:
        if not self._deafness.has_free_slot:
            return None
        try:
            return int(self._redis.llen(self._process.queue.value))
        except RedisError:
            # No verdict: while Redis is away there is nothing to hear.
            return None

    def _end_deaf(self) -> None:
        """Let what runs in the other slots end as at a drain, then end the process."""
        process = self._process
        log.critical(
            "worker_deaf",
            queue=process.queue.value,
            seconds=process.settings.deaf_seconds,
            stacks=all_stacks(),
        )
        process.stopping.set()
        process.heartbeat.wait_until_free(process.settings.drain_seconds)
        process.heartbeat.give_back()
        process.heartbeat.close()
        leave(ExitCode.DEAF)
