"""Downloads the files that jobs made, resuming and verifying."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.client.errors import DAMAGED, LOCAL_FILE, ApiError
from app.client.transport import Transport, back_off, road
from app.client.values import Artifact

_READ_BYTES = 1024 * 1024
#: Tries in a row that bring no byte before a download gives up.
_TRIES = 6


class Artifacts:
    """``darkroom.artifacts``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str) -> Iterator[Artifact]:
        """The files that a job made."""
        return map(Artifact.from_dict, self._transport.pages(road("jobs", job_id, "artifacts")))

    def get(self, artifact_id: str) -> Artifact:
        """One file's name, size and digest."""
        return Artifact.from_dict(
            self._transport.call("GET", road("artifacts", artifact_id)).json()
        )

    def link(self, artifact_id: str, *, direct: bool = False) -> str:
        """A link that downloads the file for a while, without a key.

        ``direct`` leads straight to the object store instead of through the service.
        """
        body = self._transport.call(
            "POST", road("artifacts", artifact_id, "link"), json={"direct": direct}
        ).json()
        return str(body["url"])

    def download(
        self,
        artifact: Artifact | str,
        path: str | Path,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write a file to ``path``, or into the folder ``path`` under its own name.

        Bytes go to a hidden name beside it, a broken download goes on where it stopped (also
        one of an earlier run), the digest is checked, and only then the file appears.

        Raises:
            ApiError: refused, lost, or ``damaged`` where size or SHA-256 differ.
        """
        if isinstance(artifact, str):
            artifact = self.get(artifact)
        path = Path(path)
        if path.is_dir():
            # The name came over the wire; only its last component may choose a place.
            path = path / Path(artifact.name).name
        part = path.with_name(f".{path.name}.{artifact.id}.part")
        try:
            self._fetch(artifact, part, on_progress)
            part.replace(path)
        except OSError as error:
            raise ApiError(
                f"{path} cannot be written: {error.strerror}", code=LOCAL_FILE
            ) from error
        return path

    def _fetch(
        self, artifact: Artifact, part: Path, on_progress: Callable[[int, int], None] | None
    ) -> None:
        digest = hashlib.sha256()
        with part.open("a+b") as out:
            out.seek(0)
            while chunk := out.read(_READ_BYTES):
                digest.update(chunk)
            if out.tell() > artifact.size_bytes:
                digest = _start_over(out)
            fruitless = 0
            while (before := out.tell()) < artifact.size_bytes:
                try:
                    digest = self._continue(artifact, out, digest, on_progress)
                except ApiError as error:
                    if not error.may_pass:
                        raise
                    fruitless = 0 if out.tell() > before else fruitless + 1
                    if fruitless >= _TRIES:
                        raise
                    self._transport.pause(back_off(fruitless))
            size = out.tell()
        if size != artifact.size_bytes or digest.hexdigest() != artifact.sha256:
            with contextlib.suppress(OSError):
                part.unlink()
            raise ApiError(
                f"{artifact.name} arrived damaged: {size} bytes, SHA-256 {digest.hexdigest()}; "
                f"expected {artifact.size_bytes} bytes, {artifact.sha256}",
                code=DAMAGED,
            )

    def _continue(
        self,
        artifact: Artifact,
        out: Any,
        digest: Any,
        on_progress: Callable[[int, int], None] | None,
    ) -> Any:
        """Read on from where ``out`` ends; the digest over all that is in it."""
        begin = out.tell()
        headers = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"} if begin else {}
        with self._transport.stream(
            road("artifacts", artifact.id, "content"), headers={"Accept": "*/*", **headers}
        ) as response:
            if begin and response.status_code != 206:
                digest = _start_over(out)
            for chunk in response.iter_bytes():
                out.write(chunk)
                digest.update(chunk)
                if on_progress is not None:
                    on_progress(out.tell(), artifact.size_bytes)
        return digest


def _start_over(out: Any) -> Any:
    out.seek(0)
    out.truncate()
    return hashlib.sha256()
