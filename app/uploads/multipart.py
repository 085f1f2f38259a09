"""Large uploads in parts that go past the service, straight to the object store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.clock import utc_now
from app.errors import DarkroomError, InvalidInputError, StorageError
from app.storage.s3 import ObjectStore, PartInfo
from app.uploads.tables import Upload

MIB = 1024 * 1024
#: Object stores take 10,000 parts; fewer keep the list of links short.
_MOST_PARTS = 4000
#: The slowest client that is waited for, and the longest life that a signature may have.
_SLOWEST_BYTES_PER_SECOND = MIB
_LONGEST_LINK_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class PartPlan:
    """How a file is cut: every part but the last has ``part_bytes``."""

    part_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class SignedPart:
    """Where to PUT one part."""

    number: int
    url: str


def plan_parts(size_bytes: int, *, part_bytes: int) -> PartPlan:
    """A plan for a file: ``part_bytes`` at least, more where there would be too many parts."""
    least = -(-size_bytes // _MOST_PARTS)
    chosen = max(part_bytes, -(-least // MIB) * MIB)
    return PartPlan(chosen, -(-size_bytes // chosen))


def sign_parts(
    store: ObjectStore, bucket: str, upload: Upload, plan: PartPlan, *, link_seconds: int
) -> tuple[list[SignedPart], datetime]:
    """Links for every part, and when they end: later for a larger file."""
    assert upload.multipart_id is not None
    size = upload.size_bytes or 0
    seconds = min(max(link_seconds, size // _SLOWEST_BYTES_PER_SECOND), _LONGEST_LINK_SECONDS)
    ends_at = utc_now() + timedelta(seconds=seconds)
    signed = [
        SignedPart(
            number,
            store.presign_part(bucket, upload.object_key, upload.multipart_id, number, seconds),
        )
        for number in range(1, plan.count + 1)
    ]
    return signed, ends_at


def join_parts(store: ObjectStore, bucket: str, upload: Upload, parts: Sequence[PartInfo]) -> None:
    """Make one object of the parts that the client says it sent.

    May be called again after it succeeded: then the object is there already.

    Raises:
        InvalidInputError: ``parts_invalid``: the store has not these parts, or they do not
            make up the announced size.
        StorageError: the store did not answer.
    """
    assert upload.multipart_id is not None
    try:
        arrived = {
            part.number: part
            for part in store.list_parts(bucket, upload.object_key, upload.multipart_id)
        }
    except StorageError:
        if _is_joined(store, bucket, upload):
            return
        raise
    faults = [
        {"pointer": f"/parts/{index}", "detail": fault}
        for index, part in enumerate(parts)
        if (fault := _fault(index, part, arrived.get(part.number)))
    ]
    if faults:
        raise _invalid(f"{len(faults)} parts are wrong; see errors", faults)
    size = sum(arrived[part.number].size for part in parts)
    if size != upload.size_bytes:
        raise _invalid(f"the parts have {size} bytes; {upload.size_bytes} were announced", [])
    store.complete_multipart(bucket, upload.object_key, upload.multipart_id, parts)


def discard_parts(store: ObjectStore, bucket: str, upload: Upload) -> None:
    """Drop what arrived of an upload that was given up; a silent store is left to clean-up."""
    with contextlib.suppress(DarkroomError):
        if upload.multipart_id is not None:
            store.abort_multipart(bucket, upload.object_key, upload.multipart_id)


def _is_joined(store: ObjectStore, bucket: str, upload: Upload) -> bool:
    try:
        return store.head(bucket, upload.object_key).size == upload.size_bytes
    except DarkroomError:
        return False


def _fault(index: int, claimed: PartInfo, arrived: PartInfo | None) -> str | None:
    if claimed.number != index + 1:
        return f"expected part {index + 1}, not {claimed.number}"
    if arrived is None:
        return f"part {claimed.number} has not arrived"
    if arrived.etag != claimed.etag:
        return f"part {claimed.number} arrived with another ETag"
    return None


def _invalid(detail: str, faults: list[dict[str, str]]) -> InvalidInputError:
    return InvalidInputError(detail, code="parts_invalid", errors=faults[:100], total=len(faults))
