"""The central directory of a zip: found from the end, refused by count and size before reading.

The standard library's zipfile keeps half a kilobyte of objects per member; this keeps the
directory as it lies in the file and 16 bytes beside each entry.
Layout: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
from array import array
from itertools import chain, islice
from operator import gt
from typing import BinaryIO, NamedTuple, NoReturn

from app.errors import InvalidInputError
from app.uploads.members import ArchiveLimits, broken, inconsistent
from app.uploads.names import Kind, Refusal, judge_name
from app.uploads.zip_end import FULL32, LOCAL, prepended, read_end

FLAG_ENCRYPTED = 0x0001
_FLAG_UTF8 = 0x0800
_FLAG_HIDDEN_DIRECTORY = 0x2000

_CENTRAL = struct.Struct("<4sBBHHHHHIIIHHHHHII")
#: The same entry without what the first pass does not look at: magic, packed bytes, size, lengths
#: of name, extra field and comment, offset.
_CENTRAL_SIZES = struct.Struct("<4s16xIIHHH8xI")
_CENTRAL_MAGIC = b"PK\x01\x02"
_EXTRA_ZIP64 = 1
#: The system on which attributes hold a mode.
_UNIX = 3


class Header(NamedTuple):
    """What the directory says of one member; ``offset`` is its local header's in the file."""

    flags: int
    method: int
    crc: int
    packed_bytes: int
    size: int
    raw_name: bytes
    offset: int


def judge_raw_name(raw: bytes, flags: int) -> tuple[Kind, str, Refusal | None]:
    """Kind, clean name and refusal of a member, as the name alone tells them."""
    text: str | None
    try:
        # Many tools write UTF-8 without saying so; code page 437 almost never looks like it.
        text = raw.decode()
    except UnicodeDecodeError:
        text = None if flags & _FLAG_UTF8 else raw.decode("cp437")
    return judge_name(raw, text)


class ZipDirectory:
    """All members of a zip by number, in the order in which they lie in the file.

    Raises:
        InvalidInputError: ``archive_broken``, ``archive_truncated``, ``archive_inconsistent``,
            ``archive_prepended``, ``archive_encrypted``, ``archive_overlapping``,
            ``archive_too_large``, ``archive_bomb``, ``archive_unsupported``.
    """

    def __init__(self, file: BinaryIO, size: int, limits: ArchiveLimits) -> None:
        count, self._start, length = read_end(file, size)
        limits.check_entries(count)
        limits.check_directory(length)
        if length < count * _CENTRAL.size:
            inconsistent(f"a directory of {length} bytes cannot list {count} members", self._start)
        file.seek(self._start)
        self._bytes = file.read(length)
        if len(self._bytes) < length:
            inconsistent("its directory ends early", self._start + len(self._bytes))
        if count and not self._bytes.startswith(_CENTRAL_MAGIC):
            _refuse_hidden(file)
        self._positions, self._offsets, unpacked = self._walk(count)
        first = self._offsets[0] if count else self._start
        if first:
            raise prepended(f"{first} bytes")
        limits.check_expansion(size, unpacked)

    def __len__(self) -> int:
        return len(self._positions)

    def brief(self, number: int) -> tuple[bytes, int, int, int, int]:
        """Name, size, flags, method and Unix mode (0: none) of member ``number`` in the file.

        A quarter of the work of :meth:`header`, for listings of a million members.
        """
        block, position = self._bytes, self._positions[number]
        # fmt: off
        (_, _, system, _, flags, method, _, _, _, _, size, name_bytes, _,
         _, _, _, attributes, _) = _CENTRAL.unpack_from(block, position)
        # fmt: on
        if size == FULL32:
            size = self._header_at(position).size
        position += _CENTRAL.size
        mode = attributes >> 16 if system == _UNIX else 0
        return block[position : position + name_bytes], size, flags, method, mode

    def header(self, number: int) -> Header:
        """All of member ``number`` in the order of the file."""
        return self._header_at(self._positions[number])

    def limit(self, number: int) -> int:
        """The offset that member ``number`` ends before: of the next one or the directory."""
        return self._offsets[number + 1] if number + 1 < len(self._offsets) else self._start

    def _header_at(self, position: int) -> Header:
        block = self._bytes
        # fmt: off
        (_, _, _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes,
         _, _, _, _, offset) = _CENTRAL.unpack_from(block, position)
        # fmt: on
        if FULL32 in (packed, size, offset):
            size, packed, offset = self._widen(position, name_bytes, extra_bytes)
        position += _CENTRAL.size
        name = block[position : position + name_bytes]
        return Header(flags, method, crc, packed, size, name, offset)

    def _walk(self, count: int) -> tuple[array[int], array[int], int]:
        """Places in the directory and offsets of all members by offset, and their size in all."""
        positions, offsets, ends = array("Q"), array("Q"), array("Q")
        block = self._bytes
        position = unpacked = 0
        for _ in range(count):
            body = position + _CENTRAL.size
            if body > len(block):
                inconsistent(
                    "its directory lists fewer members than it counts", self._start + position
                )
            magic, packed, size, name_bytes, extra_bytes, comment_bytes, offset = (
                _CENTRAL_SIZES.unpack_from(block, position)
            )
            if magic != _CENTRAL_MAGIC:
                broken("its directory has no entry where one must begin", self._start + position)
            after = body + name_bytes + extra_bytes + comment_bytes
            if after > len(block):
                broken("a directory entry is longer than its directory", self._start + position)
            if FULL32 in (packed, size, offset):
                size, packed, offset = self._widen(position, name_bytes, extra_bytes)
            positions.append(position)
            offsets.append(offset)
            ends.append(offset + LOCAL.size + name_bytes + packed)
            unpacked += size
            position = after
        if position != len(self._bytes):
            inconsistent(
                f"its end record counts {count} members, its directory lists more",
                self._start + position,
            )
        if any(map(gt, offsets, islice(offsets, 1, None))):
            order = sorted(range(count), key=offsets.__getitem__)
            positions, offsets, ends = (
                array("Q", map(column.__getitem__, order)) for column in (positions, offsets, ends)
            )
        followers = chain(islice(offsets, 1, None), (self._start,))
        for number, overlaps in enumerate(map(gt, ends, followers)):
            if overlaps:
                refuse_overlap(self._header_at(positions[number]))
        return positions, offsets, unpacked

    def _widen(self, position: int, name_bytes: int, extra_bytes: int) -> tuple[int, int, int]:
        """Size, packed bytes and offset of an entry whose 32-bit fields did not hold them."""
        packed, size, *_, offset = _CENTRAL_SIZES.unpack_from(self._bytes, position)[1:]
        body = position + _CENTRAL.size
        after = body + name_bytes
        wide = _wide_values(self._bytes[after : after + extra_bytes], [size, packed, offset])
        if wide is None:
            name = self._bytes[body:after].decode("latin-1")
            inconsistent("its 64-bit sizes are missing", self._start + position, name)
        size, packed, offset = wide
        return size, packed, offset


def refuse_overlap(header: Header) -> NoReturn:
    """Raise ``archive_overlapping``: two members share bytes, as only made ones do."""
    _, name, _ = judge_raw_name(header.raw_name, header.flags)
    raise InvalidInputError(
        f"the archive is refused: member {name!r} at byte {header.offset} overlaps what follows it",
        code="archive_overlapping",
    )


def _wide_values(extra: bytes, values: list[int]) -> list[int] | None:
    """Size, packed bytes and offset, the full ones replaced from the 64-bit extra field."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if tag == _EXTRA_ZIP64:
            end = min(position + length, len(extra))
            for index, value in enumerate(values):
                if value == FULL32:
                    if position + 8 > end:
                        return None
                    (values[index],) = struct.unpack_from("<Q", extra, position)
                    position += 8
            return values
        position += length
    return None


def _refuse_hidden(file: BinaryIO) -> None:
    """Raise for a directory that does not begin like one: encrypted, or broken."""
    file.seek(0)
    local = file.read(LOCAL.size)
    if len(local) == LOCAL.size and LOCAL.unpack(local)[2] & _FLAG_HIDDEN_DIRECTORY:
        raise InvalidInputError(
            "the archive's directory is encrypted; send it without", code="archive_encrypted"
        )
