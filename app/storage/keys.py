"""Every object key in one place: tenant first, so that one prefix holds all a tenant owns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidInputError

#: One path segment of our own keys; ids and artifact names are made to fit.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
#: Bucket names as S3 defines them, apart from the rarer rules that the store itself checks.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
#: Characters that would break a log line, a header or a listing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_KEY_BYTES = 1024


def tenant_prefix(tenant_id: str) -> str:
    """Where all objects of a tenant lie."""
    return f"tenants/{_segment(tenant_id)}/"


def upload_prefix(tenant_id: str, upload_id: str) -> str:
    """Where the archive and the shards of one upload lie."""
    return f"{tenant_prefix(tenant_id)}uploads/{_segment(upload_id)}/"


def upload_archive(tenant_id: str, upload_id: str) -> str:
    """The archive as the client sent it."""
    return f"{upload_prefix(tenant_id, upload_id)}archive"


def shard(tenant_id: str, upload_id: str, number: int) -> str:
    """Shard ``number`` of an upload; the same number always has the same bytes."""
    if number < 0:
        raise ValueError(f"shard number {number} is negative")
    return f"{upload_prefix(tenant_id, upload_id)}shards/{number:06d}.shard"


def weights(tenant_id: str, version_id: str) -> str:
    """The weights of a model version, as a sealed bundle."""
    return f"{tenant_prefix(tenant_id)}weights/{_segment(version_id)}.sealed"


def plain_weights(tenant_id: str, version_id: str) -> str:
    """The weights of a model version of the time before weights were sealed."""
    return f"{tenant_prefix(tenant_id)}weights/{_segment(version_id)}.safetensors"


def job_prefix(tenant_id: str, job_id: str) -> str:
    """Where everything a job made lies."""
    return f"{tenant_prefix(tenant_id)}jobs/{_segment(job_id)}/"


def artifact(tenant_id: str, job_id: str, name: str) -> str:
    """A file that a job made, such as ``results.jsonl``."""
    return f"{job_prefix(tenant_id, job_id)}artifacts/{_segment(name)}"


def checkpoint_prefix(tenant_id: str, job_id: str) -> str:
    """Where the checkpoints of a training lie, whichever attempt wrote them."""
    return f"{job_prefix(tenant_id, job_id)}checkpoints/"


def checkpoint(tenant_id: str, job_id: str, attempt: int, steps: int) -> str:
    """The checkpoint that one attempt wrote after so many steps; another overwrites none of it."""
    if attempt < 0 or steps < 0:
        raise ValueError(f"attempt {attempt} or step {steps} is negative")
    return f"{checkpoint_prefix(tenant_id, job_id)}{attempt:06d}-{steps:012d}.sealed"


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and a key or prefix in it, written ``s3://bucket/key``."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


# A manifest names the same few shards a million times.
@lru_cache(maxsize=1024)
def parse_location(text: str, *, require_key: bool = False) -> Location:
    """The bucket and key (or prefix, which may be empty) that ``s3://bucket/key`` names.

    Raises:
        InvalidInputError: ``location_invalid``; the detail says what is wrong.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme != "s3":
        raise _invalid(text, "it must begin with s3://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise _invalid(text, "it names no bucket")
    if not _BUCKET.fullmatch(bucket):
        raise _invalid(
            text,
            f"{bucket!r} is no bucket name: 3 to 63 lower-case letters, digits, dots and hyphens",
        )
    if require_key and not key:
        raise _invalid(text, "it names no object after the bucket")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise _invalid(text, "its key is not valid Unicode") from None
    if size > _MAX_KEY_BYTES:
        raise _invalid(text, f"its key has {size} bytes, at most {_MAX_KEY_BYTES} are possible")
    if _CONTROL.search(key):
        raise _invalid(text, "its key has control characters")
    # A store that keeps objects as files may walk up by them, out of the bucket and into others.
    if "." in key and not {".", ".."}.isdisjoint(key.split("/")):
        raise _invalid(text, "its key has '.' or '..' between slashes")
    return Location(bucket, key)


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"{text!r} cannot be part of an object key")
    return text


def _invalid(text: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"{text[:200]!r} is no location in the object store: {why}", code="location_invalid"
    )
