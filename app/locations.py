"""Locations in the object store as clients and operators write them: ``s3://bucket/key``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from app.errors import InvalidInputError

#: Any bucket but the service's own.
ANY = "*"
#: No bucket at all: images come by upload.
NOWHERE = "none"
#: Bucket names as S3 defines them, apart from the rarer rules that the store itself checks.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
#: Ends of names that S3 gives to other things than buckets (user guide, "Bucket naming rules"):
#: access points, their aliases, directory buckets. Behind one may lie any bucket, our own too.
_OTHER_THINGS = ("-s3alias", "--ol-s3", ".mrap", "--op-s3", "--x-s3", "--table-s3")
#: Characters that would break a log line, a header or a listing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_KEY_BYTES = 1024


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
    fault = bucket_fault(bucket) or _key_fault(key)
    if fault:
        raise _invalid(text, fault)
    if require_key and not key:
        raise _invalid(text, "it names no object after the bucket")
    return Location(bucket, key)


@lru_cache(maxsize=1024)
def bucket_fault(name: str) -> str | None:
    """What keeps a text from being the name of a bucket that is reached by no other name."""
    if not _BUCKET.fullmatch(name):
        return f"{name!r} is no bucket name: 3 to 63 lower-case letters, digits, dots and hyphens"
    if name.endswith(_OTHER_THINGS):
        return f"{name!r} is an access point or a directory bucket; name the bucket itself"
    return None


@dataclass(frozen=True, slots=True)
class Locations:
    """Where the inputs of a tenant may lie: prefixes that end with a slash, or ``*``."""

    prefixes: tuple[str, ...]

    @property
    def is_anywhere(self) -> bool:
        """Whether every bucket is allowed that the service's own credentials reach."""
        return ANY in self.prefixes

    def allows(self, bucket: str, key: str) -> bool:
        """Whether an object, or all objects under a prefix, may be read.

        Compared as it is written: an escaped key is another key, and one that climbs is none.
        """
        if bucket_fault(bucket) is not None or _climbs(key):
            return False
        return self.is_anywhere or f"s3://{bucket}/{key}".startswith(self.prefixes)

    def __str__(self) -> str:
        if self.is_anywhere:
            return "anywhere"
        return ", ".join(self.prefixes) or "nowhere: images come by upload alone"


ANYWHERE = Locations((ANY,))


def parse_locations(words: Iterable[str]) -> Locations:
    """The locations that ``*`` or patterns like ``s3://bucket/prefix/`` mean; no words are nowhere.

    A prefix without a slash at its end gets one, so that it means what lies below it and not
    its neighbours.

    Raises:
        InvalidInputError: ``location_invalid``.
    """
    prefixes: dict[str, None] = {}
    for word in words:
        if word == ANY:
            return ANYWHERE
        if ANY in word:
            raise _invalid(word, "a prefix allows all below it and takes no '*'")
        location = str(parse_location(word))
        prefixes[location if location.endswith("/") else f"{location}/"] = None
    return Locations(tuple(prefixes))


def _key_fault(key: str) -> str | None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "its key is not valid Unicode"
    if size > _MAX_KEY_BYTES:
        return f"its key has {size} bytes, at most {_MAX_KEY_BYTES} are possible"
    if _CONTROL.search(key):
        return "its key has control characters"
    return "its key has '.' or '..' between slashes" if _climbs(key) else None


def _climbs(key: str) -> bool:
    """Whether a store that keeps objects as files may walk up by it, and into other buckets."""
    return "." in key and not {".", ".."}.isdisjoint(key.split("/"))


def _invalid(text: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"{text[:200]!r} is no location in the object store: {why}", code="location_invalid"
    )
