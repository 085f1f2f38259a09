"""Readers of the inputs: each a stream of items with the position to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import select

from app.datasets.resolve import iter_samples
from app.datasets.tables import Split
from app.db.session import Database
from app.errors import ObjectMissingError
from app.jobs.buckets import Buckets
from app.jobs.claim import Lease
from app.jobs.items import JobItem
from app.jobs.manifest import read_manifest
from app.jobs.progress import get_job
from app.jobs.retried import count_retried, read_retried
from app.locations import Locations, parse_location
from app.storage.s3 import ObjectStore
from app.uploads.pack import ShardEntry
from app.uploads.tables import Shard


@dataclass(frozen=True, slots=True)
class Found:
    """One item of the input, and the position after it."""

    item: JobItem
    position: dict[str, Any]
    #: Line of a manifest, index of an inline item, ordinal in an upload or dataset.
    line: int
    #: Whether the client chose the custom_id, so that a repeat is the client's fault.
    named_by_client: bool

    def renamed(self, custom_id: str) -> Found:
        """The same with another custom_id."""
        return replace(self, item=replace(self.item, custom_id=custom_id))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in the input, and where."""

    line: int | None
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the job's error."""
        return {"line": self.line, "detail": self.detail}


Entry = Found | Fault


def read_input(
    db: Database,
    store: ObjectStore,
    own_bucket: str,
    lease: Lease,
    on_look: Callable[[], None] = lambda: None,
    *,
    locations: Locations,
) -> Iterator[Entry]:
    """All items of the job's input, or only those after the lease's cursor.

    ``locations`` are the tenant's now: what was allowed when the job was submitted may not be
    any more. ``on_look`` hears of every object of a prefix, which may hold many that are not
    wanted.

    Raises:
        ForbiddenError: ``location_not_allowed``, of a prefix or of a manifest itself.
        StorageError: the object store failed; trying again may help.
    """
    position = (lease.cursor or {}).get("position") or {}
    source = lease.input
    buckets = Buckets(store, own_bucket, locations)
    if "upload" in source:
        yield from _read_upload(db, lease, own_bucket, position)
    elif "retry_of" in source:
        yield from _read_retry(db, lease, position)
    elif "dataset" in source:
        yield from _read_dataset(db, lease, own_bucket, position)
    elif "prefix" in source:
        yield from _read_prefix(store, source, buckets, position, on_look)
    elif "manifest" in source:
        yield from _read_manifest(store, source, buckets, position)
    else:
        yield from _read_inline(source, buckets, position)


def _read_upload(
    db: Database, lease: Lease, own_bucket: str, position: dict[str, Any]
) -> Iterator[Entry]:
    number, skip = position.get("shard", 0), position.get("entries", 0)
    while True:
        with db.tenant(lease.tenant_id) as session:
            shard = session.execute(
                select(Shard.number, Shard.object_key, Shard.entries)
                .where(
                    Shard.upload_id == lease.input["upload"],
                    Shard.tenant_id == lease.tenant_id,
                    Shard.number >= number,
                )
                .order_by(Shard.number)
                .limit(1)
            ).first()
        if shard is None:
            return
        for index, row in enumerate(shard.entries):
            if shard.number == number and index < skip:
                continue
            entry = ShardEntry.from_row(row)
            yield Found(
                JobItem(
                    custom_id=entry.name,
                    source=entry.name,
                    bucket=own_bucket,
                    key=shard.object_key,
                    offset=entry.offset,
                    length=entry.length,
                    label=entry.label,
                ),
                {"shard": shard.number, "entries": index + 1},
                entry.ordinal,
                named_by_client=False,
            )
        number, skip = shard.number + 1, 0


def _read_retry(db: Database, lease: Lease, position: dict[str, Any]) -> Iterator[Entry]:
    """What a closed job did not finish well, by the references that its chunks kept."""
    source_id, which = lease.input["retry_of"], lease.input["which"]
    found = position.get("found", 0)
    items = read_retried(
        db, lease.tenant_id, source_id, which, start=position.get("ordinal", -1) + 1
    )
    for ordinal, item in items:
        found += 1
        # Unique among themselves already, whoever named them.
        yield Found(item, {"ordinal": ordinal, "found": found}, ordinal, named_by_client=False)
    with db.tenant(lease.tenant_id) as session:
        expected = count_retried(get_job(session, lease.tenant_id, source_id), which)
    if found != expected:
        yield Fault(
            None,
            f"of {expected} images of job {source_id} only {found} are known; submit it again",
        )


def _read_dataset(
    db: Database, lease: Lease, own_bucket: str, position: dict[str, Any]
) -> Iterator[Entry]:
    split = lease.input.get("split")
    after: int | None = position.get("ordinal")
    while True:
        with db.tenant(lease.tenant_id) as session:
            samples = list(
                iter_samples(
                    session,
                    lease.tenant_id,
                    lease.input["dataset"],
                    split=Split(split) if split else None,
                    after=after,
                )
            )
        if not samples:
            return
        for sample in samples:
            after = sample.ordinal
            yield Found(
                JobItem(
                    custom_id=sample.name,
                    source=sample.name,
                    bucket=own_bucket,
                    key=sample.object_key,
                    offset=sample.offset_bytes,
                    length=sample.length_bytes,
                    label=sample.label,
                ),
                {"ordinal": sample.ordinal},
                sample.ordinal,
                named_by_client=False,
            )


def _read_prefix(
    store: ObjectStore,
    source: dict[str, Any],
    buckets: Buckets,
    position: dict[str, Any],
    on_look: Callable[[], None],
) -> Iterator[Entry]:
    location = parse_location(source["prefix"])
    # Refused when the job was submitted, too; but here it would list every tenant's objects.
    fault = buckets.root_fault("prefix", location)
    if fault:
        yield Fault(None, fault)
        return
    include, exclude = source["include"], source["exclude"]
    try:
        objects = store.list(location.bucket, location.key, start_after=position.get("key"))
        for index, found in enumerate(objects):
            on_look()
            relative = found.key.removeprefix(location.key).lstrip("/")
            if found.key.endswith("/") or not _wanted(relative, include, exclude):
                continue
            yield Found(
                _whole_object(location.bucket, found.key),
                {"key": found.key},
                index,
                named_by_client=False,
            )
    except ObjectMissingError as error:
        yield Fault(None, error.detail)


def _wanted(relative: str, include: list[str], exclude: list[str]) -> bool:
    """Globs over the key after the prefix; ``*`` crosses slashes, as in the shell of S3 tools."""
    if include and not any(fnmatchcase(relative, glob) for glob in include):
        return False
    return not any(fnmatchcase(relative, glob) for glob in exclude)


def _read_manifest(
    store: ObjectStore, source: dict[str, Any], buckets: Buckets, position: dict[str, Any]
) -> Iterator[Entry]:
    location = parse_location(source["manifest"], require_key=True)
    fault = buckets.root_fault("manifest", location)
    if fault:
        yield Fault(None, fault)
        return
    start_after = position.get("line", 0)
    try:
        for entry in read_manifest(store, location, default_bucket=source["bucket"]):
            if entry.line <= start_after:
                continue
            if entry.item is None:
                yield Fault(entry.line, entry.fault or "not readable")
                continue
            fault = buckets.item_fault(entry.item.bucket, entry.item.key)
            if fault:
                yield Fault(entry.line, fault)
            else:
                yield Found(entry.item, {"line": entry.line}, entry.line, named_by_client=True)
    except ObjectMissingError as error:
        yield Fault(None, f"manifest {location}: {error.detail}")


def _read_inline(
    source: dict[str, Any], buckets: Buckets, position: dict[str, Any]
) -> Iterator[Entry]:
    for index, body in enumerate(source["items"]):
        if index < position.get("index", 0):
            continue
        location = parse_location(body["key"], require_key=True)
        fault = buckets.item_fault(location.bucket, location.key)
        if fault:
            yield Fault(index, fault)
            continue
        item = _whole_object(location.bucket, location.key)
        item = replace(
            item,
            custom_id=body.get("custom_id") or item.source,
            label=body.get("label"),
            metadata=body.get("metadata"),
        )
        yield Found(item, {"index": index + 1}, index, named_by_client=True)


def _whole_object(bucket: str, key: str) -> JobItem:
    where = f"s3://{bucket}/{key}"
    return JobItem(custom_id=where, source=where, bucket=bucket, key=key)
