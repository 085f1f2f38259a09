"""Keeps the processes of one machine running, names the dead, and drains them all at the end.

The main thread acts, on one queue of events: a thread per process waits for its end, a signal
handler asks to stop. Nothing here polls, and nothing but our own processes is ever signalled.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.clock import monotonic_seconds
from app.stack.backoff import Backoff, Life
from app.stack.part import Part
from app.stack.processes import DiskFullError, StackError, end_group, rotate, tail

KILL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep alive; ``command`` starts with the absolute path of its program."""

    name: str
    command: Sequence[str]
    #: Its whole environment; ours where it is left out.
    environment: Mapping[str, str] | None = field(default=None, repr=False)
    #: A worker: it serves once the database knows its pid.
    is_worker: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    log_path: Path
    life: Life
    process: subprocess.Popen[bytes] | None = None
    due_at: float | None = None
    log_offset: int = 0


class Supervisor:
    """Runs children, and watches parts that were started before it."""

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        logs_dir: Path,
        parts: Sequence[Part] = (),
        say: Callable[[str], None],
        backoff: Backoff | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        """``keep_open`` are descriptors that children inherit, such as a lock they share."""
        self._backoff = backoff or Backoff()
        quick = self._backoff.quick_seconds
        self._children = [
            _Child(spec, logs_dir / f"{spec.name}.log", Life(quick)) for spec in children
        ]
        self._parts = {part: Life(quick) for part in parts}
        #: Parts that wait for room on their disk, and when each is tried again.
        self._full: dict[Part, float] = {}
        self._say = say
        self._keep_open = tuple(keep_open)
        # SimpleQueue, because a signal handler may put while this thread is in get.
        self._events: queue.SimpleQueue[_Child | Part | None] = queue.SimpleQueue()
        self._stop_requests = 0

    @property
    def stopping(self) -> bool:
        """Whether someone asked to stop."""
        return self._stop_requests > 0

    def pids(self) -> dict[str, int]:
        """The running children by name."""
        return {
            child.spec.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    @property
    def worker_names(self) -> list[str]:
        """The workers there should be, running or not."""
        return [child.spec.name for child in self._children if child.spec.is_worker]

    def request_stop(self) -> None:
        """Ask ``run`` to return; safe in a signal handler. Asked twice, draining is cut short."""
        self._stop_requests += 1
        self._events.put(None)

    def start(self) -> None:
        """Start every child and begin to watch the parts."""
        for part in self._parts:
            self._parts[part].begin()
            self._watch(part, part.process)
        for child in self._children:
            self._start(child)

    def run(self) -> None:
        """Keep everything running until someone asks to stop."""
        while not self.stopping:
            self._step(None)

    def run_until(self, ready: Callable[[], bool], limit_seconds: float) -> bool:
        """Keep everything running until ``ready``; false where someone asked to stop first.

        Raises:
            StackError: a child keeps dying at once, or the time ran out.
        """
        deadline = monotonic_seconds() + limit_seconds
        while not self.stopping:
            if ready():
                return True
            self._step(0.05)
            for child in self._children:
                if child.life.quick_deaths >= self._backoff.loud_after:
                    raise StackError(f"{child.spec.name} does not stay up.")
            if monotonic_seconds() > deadline:
                logs = self._children[0].log_path.parent if self._children else "the logs"
                raise StackError(f"not ready after {limit_seconds:.0f} s; look into {logs}")
        return False

    def drain(self, limit_seconds: float) -> None:
        """Send every child SIGTERM in the order given and wait until all have let go.

        What has not gone after ``limit_seconds``, or when a stop is asked for again, is killed
        and named: its leases end by themselves and its chunks are computed again.
        """
        asked = self._stop_requests
        running = [child for child in self._children if self._signal(child, signal.SIGTERM)]
        self._wait_for(
            running, limit_seconds, cut_short=lambda: self._stop_requests > max(asked, 1)
        )
        late = [child for child in running if self._signal(child, signal.SIGKILL)]
        for child in late:
            self._say(f"{child.spec.name} had not let go in time and was killed.")
        self._wait_for(late, KILL_SECONDS)

    def _wait_for(
        self,
        children: Sequence[_Child],
        limit_seconds: float,
        cut_short: Callable[[], bool] = lambda: False,
    ) -> None:
        deadline = monotonic_seconds() + limit_seconds
        left = {id(child) for child in children}
        while left and not cut_short():
            try:
                event = self._events.get(timeout=max(0.0, deadline - monotonic_seconds()))
            except queue.Empty:
                return
            left.discard(id(event))

    def _signal(self, child: _Child, number: signal.Signals) -> bool:
        """Send a signal to a child that runs; false where there is none."""
        if child.process is None or child.process.returncode is not None:
            return False
        try:
            # Past Popen, which would reap a child that has just ended from under its watcher.
            os.kill(child.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _step(self, limit_seconds: float | None) -> None:
        """Handle one event, or start again what is due."""
        now = monotonic_seconds()
        waits = [child.due_at - now for child in self._children if child.due_at is not None]
        waits += [due_at - now for due_at in self._full.values()]
        waits += [limit_seconds] if limit_seconds is not None else []
        try:
            event = self._events.get(timeout=max(0.0, min(waits)) if waits else None)
        except queue.Empty:
            event = None
        if isinstance(event, Part):
            self._restart_part(event)
        elif event is not None:
            self._bury(event)
        for part, due_at in list(self._full.items()):
            if due_at <= monotonic_seconds() and not self.stopping:
                self._start_part(part)
        for child in self._children:
            due = child.due_at is not None and child.due_at <= monotonic_seconds()
            if due and not self.stopping:
                pid = self._start(child)
                self._say(f"{child.spec.name} was started again (pid {pid}).")

    def _start(self, child: _Child) -> int:
        child.log_offset = rotate(child.log_path)
        with child.log_path.open("ab") as log:
            child.process = subprocess.Popen(
                [
                    # -P: a folder named `app` where the user stands must not come first.
                    *(sys.executable, "-P", "-m", "app.stack.child", str(os.getpid())),
                    *child.spec.command,
                ],
                env=child.spec.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches only us, so that we say when each one stops; and what a child
                # starts is of its group, which ends with it.
                start_new_session=True,
                pass_fds=self._keep_open,
            )
        child.life.begin()
        child.due_at = None
        self._watch(child, child.process, leads_group=True)
        return child.process.pid

    def _watch(
        self,
        event: _Child | Part,
        process: subprocess.Popen[bytes] | None,
        *,
        leads_group: bool = False,
    ) -> None:
        """Put ``event`` on the queue when the process has ended, and its group with it.

        Parts have no say here: PostgreSQL's own processes see by themselves that it is gone.
        """

        def wait() -> None:
            if process is None:
                return
            try:
                if leads_group and sys.platform == "linux":
                    # Seen, not yet reaped: until then no stranger can have its number.
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                    if left := end_group(process.pid, KILL_SECONDS):
                        self._say(f"processes of {process.pid} do not end: {left}")
            finally:
                # Whatever happened: what nobody hears of is never started again.
                process.wait()
                self._events.put(event)

        threading.Thread(target=wait, daemon=True).start()

    def _bury(self, child: _Child) -> None:
        """Name a dead child and set when it starts again."""
        assert child.process is not None
        if self.stopping:
            return
        quick_deaths = child.life.end()
        delay = self._backoff.delay(quick_deaths)
        child.due_at = monotonic_seconds() + delay
        self._say(
            f"{child.spec.name} {ending(child.process.returncode)}"
            + (f"; starts again in {delay:.1f} s." if delay else ".")
        )
        if quick_deaths >= self._backoff.loud_after:
            self._say(
                f"{child.spec.name} died at once {quick_deaths} times. " + self._log_end(child)
            )

    def _log_end(self, child: _Child) -> str:
        return f"Its log, {child.log_path}, ends:\n{tail(child.log_path, offset=child.log_offset)}"

    def _restart_part(self, part: Part) -> None:
        """Start a part that died again, on the same address; nothing works without it.

        Where its disk is full it is tried again until somebody has made room: to end here would
        take the workers along, and their leases.

        Raises:
            StackError: it does not start, or dies again and again.
        """
        if self.stopping or part.process is None:
            return
        self._say(f"{part.title} {ending(part.process.returncode)}; starting it again.")
        if self._parts[part].end() > self._backoff.loud_after:
            raise StackError(
                f"{part.title} does not stay up. Its log, {part.log_path}, ends:\n"
                + tail(part.log_path)
            )
        self._start_part(part)

    def _start_part(self, part: Part) -> None:
        try:
            part.start()
        except DiskFullError as error:
            if part not in self._full:
                self._say(f"{error.detail}\nIt is tried again until there is room.")
            self._full[part] = monotonic_seconds() + self._backoff.full_disk_seconds
            return
        self._full.pop(part, None)
        self._parts[part].begin()
        self._watch(part, part.process)
        self._say(f"{part.title} answers again (pid {part.pid}).")


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with code {code}"
