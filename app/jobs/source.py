"""What a predict job reads: one of five inputs, typed and checked before anything is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.resolve import resolve_dataset
from app.datasets.tables import Split
from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.locations import Location, Locations, parse_location
from app.tenants.locations import locations_of, not_allowed
from app.uploads.tables import Upload, UploadKind, UploadState

MAX_INLINE_ITEMS = 1000
_RULES = ("include", "exclude")
_KINDS = ("upload", "prefix", "manifest", "items", "dataset")


def check_source(
    session: Session,
    tenant_id: str,
    source: Mapping[str, Any],
    *,
    own_bucket: str,
    locations: Locations,
) -> tuple[dict[str, Any], str | None]:
    """The input as the job keeps it, and the dataset version it names, if any.

    Everything that can be told without reading the input is told here, before 202; the plan
    reads the rest. ``own_bucket`` holds the objects of all tenants and is never an input;
    ``locations`` are those of a tenant that has none of its own.

    Raises:
        InvalidInputError: not exactly one kind of input, or a wrong location.
        NotFoundError: no such upload or dataset.
        ConflictError: the upload cannot be used.
        ForbiddenError: ``location_not_allowed``.
    """
    named = [kind for kind in _KINDS if source.get(kind) is not None]
    if len(named) != 1:
        raise InvalidInputError(
            f"input needs exactly one of {', '.join(_KINDS)}; got {', '.join(named) or 'none'}",
            code="input_ambiguous",
        )
    kind = named[0]
    if kind == "upload":
        return _check_upload(session, tenant_id, str(source["upload"])), None
    if kind == "dataset":
        version = resolve_dataset(session, tenant_id, str(source["dataset"]))
        split = source.get("split")
        return {
            "dataset": version.id,
            "split": Split(split).value if split is not None else None,
        }, version.id
    if kind == "items":
        named_by_items = _check_items(source["items"], own_bucket)
        _require_allowed(session, tenant_id, named_by_items, locations)
        return {"items": [dict(item) for item in source["items"]]}, None
    location = parse_location(str(source[kind]), require_key=kind == "manifest")
    default = source.get("bucket") or location.bucket
    for bucket in (location.bucket, default):
        refuse_own_bucket(bucket, own_bucket)
    # What the lines of a manifest name is looked at when each of them is read.
    _require_allowed(session, tenant_id, {f"/input/{kind}": location}, locations)
    if kind == "manifest":
        return {"manifest": str(source["manifest"]), "bucket": default}, None
    return {
        "prefix": str(source["prefix"]),
        "include": list(source.get("include") or []),
        "exclude": list(source.get("exclude") or []),
    }, None


def describe_input(source: Mapping[str, Any]) -> str:
    """A job's input in words, for an error: ``the prefix s3://photos/a/ (include *.jpg)``."""
    if "retry_of" in source:
        return f"what job {source['retry_of']} left to be retried"
    kind = next(kind for kind in _KINDS if source.get(kind) is not None)
    if kind == "items":
        return "the items"
    rules = [f"{rule} {', '.join(source[rule])}" for rule in _RULES if source.get(rule)]
    if source.get("split"):
        rules.append(f"split {source['split']}")
    return f"the {kind} {source[kind]}" + (f" ({'; '.join(rules)})" if rules else "")


def refuse_own_bucket(bucket: str, own_bucket: str) -> None:
    """Raise InvalidInputError where a client names the bucket that holds every tenant's objects."""
    if bucket == own_bucket:
        raise InvalidInputError(
            f"the bucket {bucket} belongs to the service; put images into one of your own, or "
            "upload them",
            code="bucket_refused",
        )


def _require_allowed(
    session: Session, tenant_id: str, named: Mapping[str, Location], default: Locations
) -> None:
    allowed = locations_of(session, tenant_id, default)
    refused = [
        (pointer, location)
        for pointer, location in named.items()
        if not allowed.allows(location.bucket, location.key)
    ]
    if refused:
        raise not_allowed(refused, allowed)


def _check_upload(session: Session, tenant_id: str, upload_id: str) -> dict[str, Any]:
    upload = session.scalar(
        select(Upload).where(Upload.id == upload_id, Upload.tenant_id == tenant_id)
    )
    if upload is None:
        raise NotFoundError(f"no upload {upload_id}", code="upload_not_found")
    if upload.kind != UploadKind.ARCHIVE:
        raise InvalidInputError(f"upload {upload_id} is not an archive of images")
    # While the ingest job is under way a plan would read half of the archive.
    if upload.state != UploadState.READY:
        hint = (
            "its ingest job failed"
            if upload.state == UploadState.FAILED
            else f"wait for its ingest job {upload.job_id}"
        )
        raise ConflictError(
            f"upload {upload_id} is {upload.state}, not ready: {hint}", code="upload_not_ready"
        )
    return {"upload": upload_id}


def _check_items(items: Any, own_bucket: str) -> dict[str, Location]:
    """The location of each item by the pointer to it."""
    if not items or len(items) > MAX_INLINE_ITEMS:
        raise InvalidInputError(
            f"items must be 1 to {MAX_INLINE_ITEMS}; use a manifest for more", code="items_count"
        )
    faults = []
    named: dict[str, Location] = {}
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        pointer = f"/input/items/{index}/key"
        try:
            named[pointer] = parse_location(str(item["key"]), require_key=True)
            refuse_own_bucket(named[pointer].bucket, own_bucket)
        except InvalidInputError as error:
            faults.append({"pointer": pointer, "detail": error.detail})
        custom_id = str(item.get("custom_id") or item["key"])
        if custom_id in seen:
            faults.append(
                {
                    "pointer": f"/input/items/{index}/custom_id",
                    "detail": f"{custom_id!r} stands at item {seen[custom_id]} already",
                }
            )
        seen.setdefault(custom_id, index)
    if faults:
        raise InvalidInputError(
            f"{len(faults)} of {len(items)} items are wrong; see errors",
            code="input_invalid",
            errors=faults[:100],
            total=len(faults),
        )
    return named
