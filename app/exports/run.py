"""Writes the results of a job to one file and a manifest, in constant memory."""

from __future__ import annotations

import enum
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from app.clock import utc_now
from app.db.session import Database
from app.errors import DarkroomError
from app.exports.csv import CsvWriter
from app.exports.jsonl import JsonlWriter
from app.exports.merge import Family, iter_merged_pages, take_family, take_single
from app.exports.parquet import ParquetWriter
from app.exports.read import Only, iter_pages
from app.exports.rows import ExportRow, Writer
from app.storage import keys
from app.storage.s3 import ObjectStore

MANIFEST_NAME = "manifest.json"
MANIFEST_MEDIA_TYPE = "application/json"


class ExportFormat(enum.StrEnum):
    """A file format of exports; the value is also the file's suffix."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


_FORMATS: Mapping[ExportFormat, tuple[Callable[..., Writer], str]] = {
    ExportFormat.JSONL: (JsonlWriter, "application/x-ndjson"),
    ExportFormat.CSV: (CsvWriter, "text/csv; charset=utf-8"),
    ExportFormat.PARQUET: (ParquetWriter, "application/vnd.apache.parquet"),
}


class ExportStoppedError(DarkroomError):
    """The caller asked an export to stop; nothing of it was stored."""

    code = "export_stopped"
    status = 409
    retryable = True


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object of an export."""

    name: str
    media_type: str
    object_key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportedFile(StoredFile):
    """The results as stored, and the manifest that describes them."""

    rows: int
    #: Rows by item state.
    counts: Mapping[str, int]
    manifest: StoredFile


def write_export(
    db: Database,
    store: ObjectStore,
    bucket: str,
    *,
    tenant_id: str,
    job_id: str,
    export_job_id: str,
    attempt: int,
    format: str,  # noqa: A002  (the word of the API)
    only: Only = "all",
    include_retries: bool = False,
    on_progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ExportedFile:
    """Write the items of job ``job_id`` that have ended, in input order, and a manifest.

    The objects belong to ``export_job_id`` and carry ``attempt`` in their keys, so that two
    attempts never write the same object and a recorded digest stays true. A source job that
    still runs is exported as it stands at the start. With ``include_retries`` items that failed
    or never ended are answered by the job's retries (:mod:`app.exports.merge`). ``on_progress``
    gets the rows written so far after each page; ``should_stop`` is asked before each.

    Raises:
        NotFoundError: this tenant has no such job.
        ExportStoppedError: ``should_stop`` said so.
        ExportMismatchError: rows are missing or too many.
        InvalidInputError: there are more retries than can be merged.
        StorageError: the object store failed; trying again may help.
    """
    file_format = ExportFormat(format)
    make_writer, media_type = _FORMATS[file_format]
    with db.tenant(tenant_id) as session:
        take = take_family if include_retries else take_single
        family = take(session, tenant_id, job_id)
    name = f"results.{file_format}"
    object_key = keys.artifact(tenant_id, export_job_id, f"{attempt}-{name}")
    counts: Counter[str] = Counter()
    with store.writer(bucket, object_key, media_type) as out:
        writer = make_writer(out, *family.provenances)
        for page in _pages(db, tenant_id, family, only):
            if should_stop is not None and should_stop():
                raise ExportStoppedError("the export was stopped before its end")
            writer.write(page)
            counts.update(row.state for row in page)
            if on_progress is not None:
                on_progress(counts.total())
        writer.finish()
        if not family.root.retries:
            family.root.snapshot.compare(only, counts)
        size_bytes, sha256 = out.size, out.sha256
    data = StoredFile(name, media_type, object_key, size_bytes, sha256)
    manifest = _write_manifest(
        store,
        bucket,
        keys.artifact(tenant_id, export_job_id, f"{attempt}-{MANIFEST_NAME}"),
        _describe(family, file_format, only, data, counts)
        | ({"merged": family.describe_retries()} if include_retries else {}),
    )
    return ExportedFile(
        **asdict(data), rows=counts.total(), counts=dict(sorted(counts.items())), manifest=manifest
    )


def _pages(
    db: Database, tenant_id: str, family: Family, only: Only
) -> Iterator[Sequence[ExportRow]]:
    """The rows to write; those of merged jobs are compared with their counts on the way."""
    if family.root.retries:
        return iter_merged_pages(db, tenant_id, family, only)
    return iter_pages(db, tenant_id, family.root.snapshot, only)


def _describe(
    family: Family,
    file_format: ExportFormat,
    only: Only,
    data: StoredFile,
    counts: Counter[str],
) -> dict[str, object]:
    snapshot = family.root.snapshot
    return {
        "manifest_version": 1,
        "created_at": utc_now().isoformat(),
        "job": {
            "id": snapshot.job_id,
            "kind": snapshot.kind,
            "state": snapshot.state,
            "complete": snapshot.is_complete,
            "created_at": snapshot.created_at,
            "ended_at": snapshot.ended_at,
            "options": dict(snapshot.options),
            "counts": {
                "total": snapshot.total,
                **snapshot.counts,
                "cancelled": snapshot.cancelled,
                "expired": snapshot.expired,
            },
        },
        "model": asdict(snapshot.provenance),
        "filter": {"only": only},
        "format": file_format.value,
        "rows": counts.total(),
        "counts": dict(sorted(counts.items())),
        "file": {
            "name": data.name,
            "media_type": data.media_type,
            "size_bytes": data.size_bytes,
            "sha256": data.sha256,
        },
    }


def _write_manifest(
    store: ObjectStore, bucket: str, object_key: str, body: dict[str, object]
) -> StoredFile:
    content = json.dumps(body, ensure_ascii=False, indent=2).encode() + b"\n"
    store.put(bucket, object_key, content, MANIFEST_MEDIA_TYPE)
    return StoredFile(
        MANIFEST_NAME,
        MANIFEST_MEDIA_TYPE,
        object_key,
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
