"""Downloads the files that jobs made, resuming and verifying."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.client.download import Download, OnProgress
from app.client.transport import Transport, road
from app.client.values import Artifact


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
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write a file to ``path``, or into the folder ``path`` under its own name.

        Bytes go to a hidden name beside it, a broken download goes on where it stopped (also
        one of an earlier run), the digest is checked, and only then the file appears.

        Raises:
            ApiError: refused, lost, or ``damaged`` where size or SHA-256 differ.
        """
        if isinstance(artifact, str):
            artifact = self.get(artifact)
        return Download(
            road("artifacts", artifact.id, "content"),
            artifact.name,
            artifact.size_bytes,
            artifact.sha256,
            artifact.id,
        ).save(self._transport, path, on_progress)
