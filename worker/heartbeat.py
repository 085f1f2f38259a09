"""Keeps this worker's leases while it works, and tells the work when to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert

from app.alive import show_alive
from app.clock import monotonic_seconds
from app.errors import UnavailableError
from app.jobs.claim import Lease, extend_lease, look_at_lease, release_chunk
from app.jobs.states import JobState
from app.jobs.tables import WorkerRow
from app.log import get_logger
from app.points import reach

if TYPE_CHECKING:
    from worker.process import WorkerProcess

log = get_logger(__name__)

#: Between beats each lease is looked at this often, so that a cancel or a pause is seen soon.
_LOOK_SECONDS = 1.0
#: Work hangs when one step takes so many times as long as its longest so far.
_STALL_FACTOR = 10
#: Time that giving leases back may take at the end of a process.
_GIVE_BACK_SECONDS = 5.0


class HeldLease:
    """A lease while it is worked on; the work asks :meth:`should_stop` between steps."""

    def __init__(
        self,
        lease: Lease,
        stopping: threading.Event,
        on_recorded: Callable[[], None] = lambda: None,
    ) -> None:
        self.lease = lease
        #: Called by work that goes on after a recording: the chunk is no suspect any more.
        self.on_recorded = on_recorded
        self._stopping = stopping
        #: Set once another attempt owns the chunk: discard everything.
        self.lost = threading.Event()
        #: Set once the job was told to stop: record what is finished and let go.
        self.cancelled = threading.Event()
        #: Set once the job was paused: record what is finished and give the rest back.
        self.paused = threading.Event()
        #: Items or steps finished so far; the next beat reports it.
        self.progress = 0
        #: When a step last ended, on the process's own clock.
        self.moved_at = monotonic_seconds()
        self._longest_seconds = 0.0

    def should_stop(self) -> bool:
        """Whether to end at the next step: lost, cancelled, paused, or the process is stopping.

        Being asked shows that the step before has ended.
        """
        self.move()
        ends = (self.lost, self.cancelled, self.paused, self._stopping)
        return any(end.is_set() for end in ends)

    def report(self, progress: int) -> None:
        """Remember how far the work is."""
        self.progress = progress
        self.move()

    def move(self) -> None:
        """Say that something has ended, so that the work is not taken for hanging.

        Called at the end of a step, and never in a loop that waits for something.
        """
        now = monotonic_seconds()
        self._longest_seconds = max(self._longest_seconds, now - self.moved_at)
        self.moved_at = now

    def stalled_seconds(self, limit_seconds: float) -> float | None:
        """Seconds without any end of a step, where they are more than ever to be expected.

        That is ``limit_seconds``, or ten times the longest step of this work so far.
        """
        seconds = monotonic_seconds() - self.moved_at
        expected = max(limit_seconds, _STALL_FACTOR * self._longest_seconds)
        return seconds if seconds >= expected else None

    def learn(self, state: JobState | None) -> None:
        """Take in what the database says of the lease."""
        if state is None:
            self.lost.set()
        elif state == JobState.CANCELLING:
            self.cancelled.set()
        elif state == JobState.PAUSED:
            self.paused.set()


class Heartbeat:
    """One thread for all leases of the process, and for the worker's own row."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._held: set[HeldLease] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register the worker and begin to beat; a former process of this name is gone now."""
        self._register()
        self._thread.start()

    def close(self) -> None:
        """Stop beating and mark the worker as gone, so that its leases are freed at once."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            with self._process.db.anonymous() as session:
                session.execute(
                    update(WorkerRow)
                    .where(WorkerRow.id == self._process.id)
                    .values(gone_at=func.now())
                )
        except UnavailableError:
            log.warning("goodbye_not_said", worker=self._process.id)

    @contextmanager
    def hold(
        self, lease: Lease, on_recorded: Callable[[], None] = lambda: None
    ) -> Iterator[HeldLease]:
        """Keep the lease for as long as the block runs."""
        held = HeldLease(lease, self._process.stopping, on_recorded)
        with self._lock:
            # By object, not by chunk: a thread that has not noticed yet that its lease is
            # lost may stand beside the next attempt at the same chunk.
            self._held.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)

    @property
    def held(self) -> list[HeldLease]:
        """The leases that are worked on now."""
        with self._lock:
            return list(self._held)

    def stalled(self, limit_seconds: float) -> tuple[Lease, float] | None:
        """A lease whose work hangs, and for how long; lost and cancelled ones included."""
        for held in self.held:
            seconds = held.stalled_seconds(limit_seconds)
            if seconds is not None:
                return held.lease, seconds
        return None

    def move_all(self) -> None:
        """Say that something has ended that all of the process's work may be waiting for."""
        for held in self.held:
            held.move()

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until nothing is worked on; whether that came in time."""
        until = monotonic_seconds() + seconds
        while self.held:
            if monotonic_seconds() >= until:
                return False
            self._closing.wait(0.1)
        return True

    def give_back(self) -> None:
        """Free what is still worked on, just before the process ends: that is no kill.

        Whoever works on it is fenced: its record finds no running chunk. Bounded, as the
        database may be what everyone waits for.
        """
        thread = threading.Thread(target=self._give_back, name="give-back", daemon=True)
        thread.start()
        thread.join(_GIVE_BACK_SECONDS)

    def _give_back(self) -> None:
        for held in self.held:
            try:
                with self._process.db.tenant(held.lease.tenant_id) as session:
                    release_chunk(session, held.lease)
            except UnavailableError as error:
                log.warning("lease_left", chunk=held.lease.chunk_id, code=error.code)

    def _run(self) -> None:
        settings = self._process.settings
        beat_at = monotonic_seconds() + settings.heartbeat_seconds
        pause = min(_LOOK_SECONDS, settings.heartbeat_seconds)
        while not self._closing.wait(pause):
            beats = monotonic_seconds() >= beat_at
            if beats:
                reach("heartbeat")
            try:
                self._visit_leases(extend=beats)
                if beats:
                    self._show_alive()
                    beat_at = monotonic_seconds() + settings.heartbeat_seconds
            except UnavailableError as error:
                log.warning("heartbeat_missed", code=error.code)
            except Exception:
                # A beat that fails must not end the beating: the lease would be lost.
                log.exception("heartbeat_failed")

    def _visit_leases(self, *, extend: bool) -> None:
        missed: UnavailableError | None = None
        for held in self.held:
            try:
                held.learn(self._visit(held, extend=extend))
            except UnavailableError as error:
                # The others all the same: a row that somebody locks must not cost their leases.
                missed = error
        if missed is not None:
            raise missed

    def _visit(self, held: HeldLease, *, extend: bool) -> JobState | None:
        lease = held.lease
        with self._process.db.tenant(lease.tenant_id) as session:
            if not extend:
                return look_at_lease(session, lease)
            return extend_lease(
                session,
                lease,
                lease_seconds=self._process.settings.lease_seconds,
                progress=held.progress,
            )

    def _register(self) -> None:
        process = self._process
        with process.db.anonymous() as session:
            session.execute(
                update(WorkerRow)
                .where(WorkerRow.name == process.name, WorkerRow.gone_at.is_(None))
                .values(gone_at=func.now())
            )
            session.execute(
                insert(WorkerRow).values(
                    id=process.id,
                    name=process.name,
                    host=process.host,
                    pid=os.getpid(),
                    device=process.device,
                    queue=process.queue.value,
                    slots=process.slots,
                    warm_versions=[],
                )
            )
        show_alive(process.settings.alive_file)

    def _show_alive(self) -> None:
        process = self._process
        with process.db.anonymous() as session:
            still_here = session.execute(
                update(WorkerRow)
                .where(WorkerRow.id == process.id, WorkerRow.gone_at.is_(None))
                .values(last_seen_at=func.now(), warm_versions=process.warm_versions())
                .returning(WorkerRow.id)
            ).first()
        if still_here is None and not process.stopping.is_set():
            # Whatever this process claims is taken from it again, and bells that it hears
            # are lost: two processes of one name must not go on.
            log.error("worker_replaced", worker=process.id, name=process.name)
            process.on_replaced()
            return
        show_alive(process.settings.alive_file)
