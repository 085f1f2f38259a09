"""What the three local parts have in common: one folder, one log, one process at a time."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from app.stack.processes import (
    DiskFullError,
    StackError,
    rotate,
    stop_child,
    tail,
    wait_ready,
)
from app.stack.secrets import LocalSecrets, load_secrets

START_ATTEMPTS = 3
#: With less no part can be expected to start: one file of PostgreSQL's log of changes.
_ROOM_BYTES = 16 * 1024 * 1024


def prepare_data_dir(data_dir: Path) -> Path:
    """Make the data folder where it is missing; returns its absolute path.

    Others may pass through it but not list it: PostgreSQL may run under another user.
    """
    data_dir = data_dir.expanduser().absolute()
    if not data_dir.exists():
        data_dir.mkdir(parents=True)
        data_dir.chmod(0o711)
    return data_dir.resolve()


class Part(ABC):
    """A server of this machine whose data lie in ``data_dir/<name>``."""

    name: str
    title: str
    ready_seconds = 15.0
    stop_signals: tuple[tuple[signal.Signals, float], ...] = ((signal.SIGTERM, 15.0),)

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = prepare_data_dir(data_dir)
        self.folder = self.data_dir / self.name
        self.log_path = self.data_dir / "logs" / f"{self.name}.log"
        self.secrets: LocalSecrets = load_secrets(self.data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        self.port = 0
        self._fixed_port: int | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The server's process, running or ended; nothing before the start and after a stop."""
        return self._process

    @property
    def pid(self) -> int | None:
        """The pid of the running server, or nothing."""
        return self._process.pid if self.alive and self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process that ``start`` began still runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; does nothing where it runs already.

        Raises:
            PartMissingError: its program is not installed.
            DiskFullError: the disk that holds its data is full.
            StackError: it did not come up; the detail ends with its last log lines.
        """
        if self.alive:
            return
        try:
            self._prepare()
            for attempts_left in reversed(range(START_ATTEMPTS)):
                self._log_offset = rotate(self.log_path)
                self._launch()
                assert self._process is not None
                if wait_ready(self._process, self._answers, self.ready_seconds):
                    # Others know the address by now: a later start must not move it.
                    self._fixed_port = self.port
                    return
                died = self._process.poll()
                self.stop()
                if died is None or not attempts_left or not self._may_try_again():
                    break
        except OSError as error:
            self.stop()
            kind = DiskFullError if error.errno == errno.ENOSPC else StackError
            raise kind(f"{self.title} could not be started: {error}") from error
        why = "did not answer in time" if died is None else f"ended with code {died}"
        raise (DiskFullError if self._disk_is_full else StackError)(
            f"{self.title} {why}; {self._advice()} Its log, {self.log_path}, ends:\n"
            + tail(self.log_path, offset=self._log_offset)
        )

    def stop(self) -> None:
        """Stop the server so that nothing it acknowledged is lost, and wait until it is gone."""
        if self._process is not None:
            stop_child(self._process, *self.stop_signals)
            self._process = None
            self._after_stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        user: int | None = None,
        group: int | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Run the server in a session of its own, so that Ctrl-C does not reach it before us."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RCLONE_", "PG")) and key != "LD_PRELOAD"
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**environment, **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )

    @property
    def _disk_is_full(self) -> bool:
        """Whether this start failed for lack of room; the log may have found none either."""
        # PostgreSQL and Valkey say it as C does, rclone as Go does.
        says = self._log_says("No space left on device", "no space left on device")
        return says or shutil.disk_usage(self.data_dir).free < _ROOM_BYTES

    def _log_says(self, *words: str) -> bool:
        """Whether this start's log holds one of the words."""
        text = tail(self.log_path, 200, offset=self._log_offset)
        return any(word in text for word in words)

    @abstractmethod
    def _prepare(self) -> None:
        """Make the folder ready and put out of the way what a killed supervisor left."""

    @abstractmethod
    def _launch(self) -> None:
        """Spawn the server once, on a port that is free at this moment."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server does its work now."""

    def _may_try_again(self) -> bool:
        """Whether a start that died may succeed at the next attempt."""
        return False

    def _after_stop(self) -> None:
        """Remove what only a running server needs; nothing where it cleans up itself."""
        return

    def _advice(self) -> str:
        """One sentence that says what to do about a server that does not come up."""
        return "free what it needs, then start again."
