"""Sends archives, folders and weights; reads what became of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from app.client.errors import LOCAL_FILE, UNREACHABLE, ApiError
from app.client.folder import FolderTar
from app.client.multipart import send_multipart
from app.client.transport import Transport, road
from app.client.values import Added, Job, Upload

UploadKind = Literal["archive", "weights"]
#: Called with bytes sent so far and bytes in all; again from 0 when a stream starts over.
OnBytes = Callable[[int, int], None]

_READ_BYTES = 1024 * 1024
#: Larger files go to the object store in parts, which are sent again one by one if one is lost.
MULTIPART_ABOVE_BYTES = 256 * 1024 * 1024
#: A stream that broke is sent again from its beginning, at most so often in all.
_STREAM_TRIES = 3


class Uploads:
    """``darkroom.uploads``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(
        self,
        path: str | Path,
        *,
        kind: UploadKind | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        on_progress: OnBytes | None = None,
        multipart_above_bytes: int = MULTIPART_ABOVE_BYTES,
    ) -> Added:
        """Send an archive, a folder (packed on the way) or a ``.safetensors`` file.

        ``include`` and ``exclude`` are globs and belong to folders. An archive's answer
        carries its ingest job.

        Raises:
            ApiError: the file cannot be read, or the service refused it.
        """
        path = Path(path)
        if kind is None:
            kind = "weights" if path.suffix == ".safetensors" else "archive"
        if path.is_dir():
            return self._add_folder(FolderTar(path, include, exclude), path, on_progress)
        if include or exclude:
            raise ApiError(
                "include and exclude choose files of a folder; an archive is taken whole",
                code=LOCAL_FILE,
            )
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        if size > multipart_above_bytes:
            try:
                return send_multipart(self._transport, path, kind, size, on_progress)
            except ApiError as error:
                # The store behind the links may be out of this client's sight; the API is not.
                if error.code != UNREACHABLE:
                    raise
        return self._add_stream(
            lambda: _file_chunks(path), size, {"kind": kind, "filename": path.name}, on_progress
        )

    def get(self, upload_id: str) -> Upload:
        """One upload."""
        return _upload(self._transport.call("GET", road("uploads", upload_id)).json())

    def list(self) -> Iterator[Upload]:
        """Every upload, fetched page by page."""
        return map(Upload.from_dict, self._transport.pages("/v1/uploads", limit=100))

    def abort(self, upload_id: str) -> None:
        """Discard an upload whose bytes are still arriving."""
        self._transport.call("DELETE", road("uploads", upload_id))

    def _add_folder(self, tar: FolderTar, path: Path, on_progress: OnBytes | None) -> Added:
        name = path.resolve().name or "folder"
        query = {"kind": "archive", "filename": f"{name}.tar"}
        return self._add_stream(tar.chunks, tar.size_bytes, query, on_progress)

    def _add_stream(
        self,
        chunks: Callable[[], Iterator[bytes]],
        size: int,
        query: Mapping[str, str],
        on_progress: OnBytes | None,
    ) -> Added:
        def counted() -> Iterator[bytes]:
            sent = 0
            for chunk in chunks():
                yield chunk
                sent += len(chunk)
                if on_progress is not None:
                    on_progress(sent, size)

        answer = self._transport.call(
            "POST",
            "/v1/uploads",
            query=query,
            content=counted,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
            idempotency_key=str(uuid.uuid4()),
            # The answer comes only after the last part reached the object store.
            timeout_seconds=300,
            tries=_STREAM_TRIES,
        )
        return added(answer.json())


def added(body: Mapping[str, Any]) -> Added:
    """The upload and its ingest job in an answer ``{upload, job}``."""
    job = body.get("job")
    return Added(Upload.from_dict(body["upload"]), Job.from_dict(job) if job else None)


def _upload(body: Mapping[str, Any]) -> Upload:
    return Upload.from_dict(body.get("upload", body))


def _file_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as source:
            while chunk := source.read(_READ_BYTES):
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ApiError:
    return ApiError(f"{path} cannot be read: {error.strerror}", code=LOCAL_FILE)
