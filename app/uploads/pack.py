"""Packs images into shards: plain tar files whose entries bear our own names.

A worker reads a run of images by one ranged GET, by the offsets of the index; a person opens
a shard with any tar tool. Equal members in equal order make equal bytes, so a shard that is
packed again after a kill overwrites itself.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.errors import ItemError
from app.uploads.judge import EXTENSIONS, ImageFacts

_BLOCK = 512
#: Two empty blocks end a tar.
_END_BYTES = 2 * _BLOCK
_NAME_BYTES = 100
# mode, uid, gid | size | mtime | checksum (as spaces) | type, link name | magic … padding
_BEFORE_SIZE = b"0000644\x000000000\x000000000\x00"
_BEFORE_CHECKSUM = b"00000000000\x00"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000"
_REST = bytes(_BLOCK - 257 - 8)
_FIXED_SUM = sum(_BEFORE_SIZE + _BEFORE_CHECKSUM + b" " * 8 + _AFTER_CHECKSUM)


class ShardEntry(NamedTuple):
    """One image of a shard; ``offset`` and ``length`` are its content's, in bytes."""

    ordinal: int
    name: str
    offset: int
    length: int
    format: str
    width: int
    height: int
    sha256: str
    label: str | None
    split: str | None

    def as_row(self) -> list[Any]:
        """The compact form for JSON; :meth:`from_row` reads it back."""
        return list(self)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> ShardEntry:
        """The entry that :meth:`as_row` wrote."""
        return cls._make(row)


class FailedMember(NamedTuple):
    """An item that is in no shard, and why."""

    ordinal: int
    name: str
    error: ItemError


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A full shard and what it covers: every item from ``lo`` up to, not including, ``hi``.

    ``entries`` and ``failures`` together are those items. Without entries ``body`` is empty
    and there is no object to store.
    """

    number: int
    key: str
    body: bytes
    sha256: str
    lo: int
    hi: int
    entries: list[ShardEntry]
    failures: list[FailedMember]


class ShardWriter:
    """Collects items in order and gives out a shard whenever one is full.

    A shard has at most ``max_items`` items and ``max_bytes`` bytes, but always room for one
    image. Memory: one shard.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_items: int,
        key_of: Callable[[int], str],
        first_number: int = 0,
        first_ordinal: int = 0,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._key_of = key_of
        self._number = first_number
        self._lo = self._next = first_ordinal
        self._reset()

    def add(
        self,
        name: str,
        content: bytes,
        facts: ImageFacts,
        label: str | None = None,
        split: str | None = None,
    ) -> PackedShard | None:
        """Pack the next item; returns the shard before it where that is now full."""
        length = len(content)
        padding = -length % _BLOCK
        done = None
        if self._entries and (
            self._offset + _BLOCK + length + padding + _END_BYTES > self._max_bytes
        ):
            done = self._close()
        ordinal = self._next
        write = self._out.write
        write(_tar_header(f"{ordinal:09d}.{EXTENSIONS[facts.format]}", length))
        write(content)
        if padding:
            write(bytes(padding))
        self._entries.append(
            ShardEntry(
                ordinal,
                name,
                self._offset + _BLOCK,
                length,
                facts.format,
                facts.width,
                facts.height,
                hashlib.sha256(content).hexdigest(),
                label,
                split,
            )
        )
        self._offset += _BLOCK + length + padding
        return self._advance(done)

    def fail(self, name: str, error: ItemError) -> PackedShard | None:
        """Note that the next item failed; returns a shard where one is now full."""
        self._failures.append(FailedMember(self._next, name, error))
        return self._advance(None)

    def finish(self) -> PackedShard | None:
        """The last shard, where anything is left for it."""
        return self._close() if self._next > self._lo else None

    def _advance(self, done: PackedShard | None) -> PackedShard | None:
        self._next += 1
        if done is None and self._next - self._lo >= self._max_items:
            return self._close()
        return done

    def _close(self) -> PackedShard:
        body = b""
        if self._entries:
            self._out.write(bytes(_END_BYTES))
            body = self._out.getvalue()
        shard = PackedShard(
            self._number,
            self._key_of(self._number),
            body,
            hashlib.sha256(body).hexdigest(),
            self._lo,
            self._next,
            self._entries,
            self._failures,
        )
        self._number += 1
        self._lo = self._next
        self._reset()
        return shard

    def _reset(self) -> None:
        self._out = io.BytesIO()
        self._offset = 0
        self._entries: list[ShardEntry] = []
        self._failures: list[FailedMember] = []


def _tar_header(name: str, size: int) -> bytes:
    """A ustar header of a regular file: mode 644, no owner, time 0."""
    raw_name = name.encode()
    octal_size = b"%011o\x00" % size
    checksum = _FIXED_SUM + sum(raw_name) + sum(octal_size)
    return b"".join(
        (
            raw_name.ljust(_NAME_BYTES, b"\x00"),
            _BEFORE_SIZE,
            octal_size,
            _BEFORE_CHECKSUM,
            b"%06o\x00 " % checksum,
            _AFTER_CHECKSUM,
            _REST,
        )
    )
