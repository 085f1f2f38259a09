"""Downloads that resume where they broke, and are checked before they appear."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.client.errors import DAMAGED, LOCAL_FILE, ApiError
from app.client.transport import Query, Transport, back_off

#: Bytes that have come, of how many.
OnProgress = Callable[[int, int], None]

_READ_BYTES = 1024 * 1024
#: Tries in a row that bring no byte before a download gives up.
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Download:
    """A file of the service: where it is, and what it must turn out to be."""

    road: str
    #: Its own name; only the last component may choose a place.
    name: str
    size_bytes: int
    sha256: str
    #: Tells it from other files of this name in the same folder.
    id: str
    query: Query | None = None

    def save(
        self, transport: Transport, path: str | Path, on_progress: OnProgress | None = None
    ) -> Path:
        """Write the file to ``path``, or into the folder ``path`` under its own name.

        Bytes go to a hidden name beside it, a broken download goes on where it stopped (also
        one of an earlier run), the digest is checked, and only then the file appears.

        Raises:
            ApiError: refused, lost, or ``damaged`` where size or SHA-256 differ.
        """
        path = Path(path)
        if path.is_dir():
            # The name came over the wire.
            path = path / Path(self.name).name
        part = path.with_name(f".{path.name}.{self.id}.part")
        try:
            self._fetch(transport, part, on_progress)
            part.replace(path)
        except OSError as error:
            raise ApiError(
                f"{path} cannot be written: {error.strerror}", code=LOCAL_FILE
            ) from error
        return path

    def _fetch(self, transport: Transport, part: Path, on_progress: OnProgress | None) -> None:
        digest = hashlib.sha256()
        with part.open("a+b") as out:
            out.seek(0)
            while chunk := out.read(_READ_BYTES):
                digest.update(chunk)
            if out.tell() > self.size_bytes:
                digest = _start_over(out)
            fruitless = 0
            while (before := out.tell()) < self.size_bytes:
                try:
                    digest = self._continue(transport, out, digest, on_progress)
                except ApiError as error:
                    if not error.may_pass:
                        raise
                    fruitless = 0 if out.tell() > before else fruitless + 1
                    if fruitless >= _TRIES:
                        raise
                    transport.pause(back_off(fruitless))
            size = out.tell()
        if size != self.size_bytes or digest.hexdigest() != self.sha256:
            with contextlib.suppress(OSError):
                part.unlink()
            raise ApiError(
                f"{self.name} arrived damaged: {size} bytes, SHA-256 {digest.hexdigest()}; "
                f"expected {self.size_bytes} bytes, {self.sha256}",
                code=DAMAGED,
            )

    def _continue(
        self, transport: Transport, out: Any, digest: Any, on_progress: OnProgress | None
    ) -> Any:
        """Read on from where ``out`` ends; the digest over all that is in it."""
        begin = out.tell()
        headers = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"} if begin else {}
        with transport.stream(
            self.road, headers={"Accept": "*/*", **headers}, query=self.query
        ) as response:
            if begin and response.status_code != 206:
                digest = _start_over(out)
            for chunk in response.iter_bytes():
                out.write(chunk)
                digest.update(chunk)
                if on_progress is not None:
                    on_progress(out.tell(), self.size_bytes)
        return digest


def _start_over(out: Any) -> Any:
    out.seek(0)
    out.truncate()
    return hashlib.sha256()
