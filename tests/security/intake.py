"""The worker's way with an archive, without its job: opened, surveyed, judged and packed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.errors import DarkroomError, InvalidInputError
from app.jobs.manifest import read_manifest
from app.locations import Location
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.uploads.judge import ImageLimits
from app.uploads.members import ArchiveLimits
from app.uploads.pack import PackedShard, ShardWriter
from app.uploads.unpack import pack_member, survey_archive
from worker.recognisers.header import check_header

#: The limits as they are where nobody sets any.
DEFAULTS = Settings(DATABASE_URL="postgresql://not-used")
ARCHIVES = ArchiveLimits.from_settings(DEFAULTS)
IMAGES = ImageLimits.from_settings(DEFAULTS)


def take_file(path: str) -> dict[str, Any]:
    """As :func:`take`, of a file on disk."""
    with Path(path).open("rb") as file:
        return take(file)


def take_repeated(piece: bytes, count: int, tail: bytes) -> dict[str, Any]:
    """As :func:`take`, of a file that is one piece over and over, and never whole anywhere."""
    return take(io.BufferedReader(_Repeated(piece, count, tail)))


def take(file: BinaryIO, archives: ArchiveLimits = ARCHIVES) -> dict[str, Any]:
    """``refused`` with a code and ``detail``, or ``packed`` names and ``failed`` names' codes.

    Where both stand there, the archive was refused while it was packed.
    """
    packed: list[str] = []
    failed: list[tuple[str, str]] = []
    faults: list[str] = []
    outcome: dict[str, Any] = {"packed": packed, "failed": failed, "label_faults": faults}

    def keep(shard: PackedShard | None) -> None:
        if shard is not None:
            packed.extend(entry.name for entry in shard.entries)
            failed.extend((member.name, member.error.code) for member in shard.failures)

    try:
        archive, labels, item_count = survey_archive(file, archives)
        faults.extend(fault["detail"] for fault in labels.faults)
        outcome["label_fault_count"] = labels.fault_count
        writer = ShardWriter(max_bytes=DEFAULTS.shard_bytes, max_items=8192, key_of=str)
        for member in archive.members():
            keep(pack_member(writer, member, labels, IMAGES))
        keep(writer.finish())
        assert len(packed) + len(failed) == item_count, "the survey counted other items"
    except DarkroomError as error:
        if not isinstance(error, InvalidInputError):
            raise AssertionError("an archive is never the service's fault") from error
        outcome |= {"refused": error.code, "detail": error.detail}
    return outcome


def list_manifest(path: str, key: str) -> list[tuple[int, str | None]]:
    """The first thousand lines of a manifest: the number of each, and its fault or None."""
    store = cast(ObjectStore, _OneObject(path))
    lines: list[tuple[int, str | None]] = []
    for line in read_manifest(store, Location("lists", key), default_bucket="photos"):
        if len(lines) < 1000:
            lines.append((line.line, line.fault))
    return lines


def check_weights_header(path: str) -> str | None:
    """The code with which a weights file is refused by its header."""
    try:
        check_header(Path(path))
    except InvalidInputError as error:
        return error.code
    return None


class _OneObject:
    """An object store of one object, a file on disk."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, bucket: str, key: str) -> BinaryIO:
        return Path(self._path).open("rb")


class _Repeated(io.RawIOBase):
    def __init__(self, piece: bytes, count: int, tail: bytes) -> None:
        super().__init__()
        self._block = piece * 256
        self._body = len(piece) * count
        self._tail = tail
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = (0, self._position, self._body + len(self._tail))[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        if self._position < self._body:
            start = self._position % len(self._block)
            data = self._block[start : start + min(len(buffer), self._body - self._position)]
        else:
            start = self._position - self._body
            data = self._tail[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
