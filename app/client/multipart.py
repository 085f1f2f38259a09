"""Large files: parts go straight to the object store by presigned links, several at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from app.client.errors import LOCAL_FILE, ApiError
from app.client.transport import Transport, road
from app.client.values import Added, Job, Upload

_SENDERS = 4


def send_multipart(
    transport: Transport,
    path: Path,
    kind: str,
    size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Added:
    """Send a file of ``size`` bytes in parts; each part is tried again by itself.

    Raises:
        ApiError: refused; code ``unreachable`` where the links' host is out of sight. What
            had arrived is discarded.
    """
    begun = transport.call(
        "POST",
        "/v1/uploads/multipart",
        json={"kind": kind, "filename": path.name, "size_bytes": size},
    ).json()
    upload_id = str(begun["upload"]["id"])
    try:
        parts = _send_parts(transport, path, size, begun, on_progress)
    except BaseException:
        # The clean-up must not hide why; the service's own clean-up comes later anyway.
        with contextlib.suppress(ApiError):
            transport.call("DELETE", road("uploads", upload_id), tries=2)
        raise
    body = transport.call(
        "POST",
        road("uploads", upload_id, "complete"),
        json={"parts": parts},
        timeout_seconds=300,
    ).json()
    job = body.get("job")
    return Added(Upload.from_dict(body["upload"]), Job.from_dict(job) if job else None)


def _send_parts(
    transport: Transport,
    path: Path,
    size: int,
    begun: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    part_bytes = int(begun["part_bytes"])
    counter = threading.Lock()
    stop = threading.Event()
    sent = 0

    def send(part: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal sent
        number = int(part["number"])
        if stop.is_set():
            raise ApiError("another part failed", code="part_refused")
        body = _read(path, (number - 1) * part_bytes, part_bytes)
        etag = transport.put_link(str(part["url"]), body)
        with counter:
            sent += len(body)
            if on_progress is not None:
                on_progress(sent, size)
        return {"number": number, "etag": etag}

    with ThreadPoolExecutor(_SENDERS, thread_name_prefix="part") as pool:
        futures = [pool.submit(send, part) for part in begun["parts"]]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    failed = [future for future in futures if not future.cancelled() and future.exception()]
    for future in failed:
        future.result()
    return [future.result() for future in futures]


def _read(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb") as source:
            source.seek(offset)
            return source.read(length)
    except OSError as error:
        raise ApiError(f"{path} cannot be read: {error.strerror}", code=LOCAL_FILE) from error
