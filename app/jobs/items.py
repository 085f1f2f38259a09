"""The item references that a chunk carries, in a compact form for one JSON column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JobItem:
    """One image of a job: where its bytes lie, and what goes with it into the results.

    ``offset`` and ``length`` are bytes inside the object, or None for the whole object.
    ``source`` is how results name it: the member of an upload, or the object's location.
    """

    custom_id: str
    bucket: str
    key: str
    source: str
    offset: int | None = None
    length: int | None = None
    label: str | None = None
    metadata: dict[str, Any] | None = None


def pack_items(items: Sequence[JobItem]) -> dict[str, Any]:
    """One chunk's items as JSON; bucket and key are written once where all agree."""
    buckets = {item.bucket for item in items}
    if len(buckets) != 1:
        raise ValueError("the items of a chunk lie in one bucket")
    keys = {item.key for item in items}
    shared = keys.pop() if len(keys) == 1 else None
    return {
        "bucket": buckets.pop(),
        "key": shared,
        "rows": [
            [
                item.custom_id,
                None if item.source == item.custom_id else item.source,
                None if shared is not None else item.key,
                item.offset,
                item.length,
                item.label,
                item.metadata,
            ]
            for item in items
        ],
    }


def unpack_items(body: dict[str, Any]) -> list[JobItem]:
    """The items that :func:`pack_items` wrote."""
    bucket, shared = body["bucket"], body["key"]
    return [
        JobItem(
            custom_id=custom_id,
            bucket=bucket,
            key=shared if key is None else key,
            source=custom_id if source is None else source,
            offset=offset,
            length=length,
            label=label,
            metadata=metadata,
        )
        for custom_id, source, key, offset, length, label, metadata in body["rows"]
    ]


def slice_items(body: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The same with only the items at positions [start, stop)."""
    return {**body, "rows": body["rows"][start:stop]}


def fetched_together(left: JobItem, right: JobItem) -> bool:
    """Whether two neighbours may share a chunk.

    Inside one shard they may, so that a chunk is one ranged GET; whole objects need only lie
    in the same bucket.
    """
    if left.bucket != right.bucket:
        return False
    if left.offset is None and right.offset is None:
        return True
    return left.key == right.key
