"""How the client's errors become ours: what is missing, what may be tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from app.errors import InvalidInputError, ObjectMissingError, StorageAwayError, StorageError

_SERVER_ERRORS = 500
_INSUFFICIENT_STORAGE = 507
_FULL = frozenset({"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded"})
#: When a client may ask again whose write found no room: people have to make some.
_FULL_RETRY_SECONDS = 60
_MISSING_KEY = frozenset({"NoSuchKey", "404", "NotFound"})


@contextmanager
def faults(bucket: str, key: str) -> Iterator[None]:
    """Turn the client's errors into ours; nothing of a signature or a key pair is told."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            raise bucket_missing(bucket) from None
        if code in _MISSING_KEY:
            raise ObjectMissingError(f"there is no object {where(bucket, key)}") from None
        if code == "InvalidRange":
            raise ObjectMissingError(
                f"{where(bucket, key)} ends before the range that was asked for"
            ) from None
        if _is_full(error):
            raise StorageAwayError(
                "the object store is full: nothing was written; make room and try again",
                code="storage_full",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            ) from error
        kind = StorageAwayError if _status(error) >= _SERVER_ERRORS else StorageError
        raise kind(
            f"the object store refused {error.operation_name} of {where(bucket, key)}: {code}"
        ) from error
    except ParamValidationError as error:
        raise InvalidInputError(
            f"{where(bucket, key)} is no valid location", code="location_invalid"
        ) from error
    except BotoCoreError as error:
        raise StorageAwayError(
            f"the object store did not answer for {where(bucket, key)}: {type(error).__name__}"
        ) from error


def _is_full(error: ClientError) -> bool:
    """Whether the store has no room: 507 (RFC 4918), MinIO's own word, or a file server's."""
    said = error.response.get("Error", {})
    return (
        _status(error) == _INSUFFICIENT_STORAGE
        or said.get("Code") in _FULL
        or "no space left on device" in str(said.get("Message", "")).lower()
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def error_code(error: ClientError) -> str:
    """The store's own word for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def bucket_missing(bucket: str) -> ObjectMissingError:
    """The error of a bucket that is not there."""
    return ObjectMissingError(f"there is no bucket {bucket!r}", code="bucket_missing")


def where(bucket: str, key: str) -> str:
    """How an object is named to people."""
    return f"s3://{bucket}/{key}"
