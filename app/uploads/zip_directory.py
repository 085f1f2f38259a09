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
_CENTRAL_MAGIC = b"PK\x01\x02"
_EXTRA_ZIP64 = 1


class Header(NamedTuple):
    """What the directory says of one member; ``offset`` is its local header's in the file."""

    system: int
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size: int
    raw_name: bytes
    attributes: int
    offset: int

    def judge_name(self) -> tuple[Kind, str, Refusal | None]:
        """Kind, clean name and refusal, as the name alone tells them."""
        raw = self.raw_name
        text: str | None
        try:
            # Many tools write UTF-8 without saying so; code page 437 almost never looks like it.
            text = raw.decode()
        except UnicodeDecodeError:
            text = None if self.flags & _FLAG_UTF8 else raw.decode("cp437")
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

    def header(self, number: int) -> Header:
        """Member ``number`` in the order of the file."""
        return self._parse(self._positions[number])[0]

    def limit(self, number: int) -> int:
        """The offset that member ``number`` ends before: of the next one or the directory."""
        return self._offsets[number + 1] if number + 1 < len(self._offsets) else self._start

    def _walk(self, count: int) -> tuple[array[int], array[int], int]:
        """Places in the directory and offsets of all members by offset, and their size in all."""
        positions, offsets, ends = array("Q"), array("Q"), array("Q")
        position = unpacked = 0
        for _ in range(count):
            positions.append(position)
            header, position = self._parse(position)
            offset = header.offset
            offsets.append(offset)
            ends.append(offset + LOCAL.size + len(header.raw_name) + header.packed_bytes)
            unpacked += header.size
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
                refuse_overlap(self._parse(positions[number])[0])
        return positions, offsets, unpacked

    def _parse(self, position: int) -> tuple[Header, int]:
        """The entry at ``position`` of the directory, and where the next one begins."""
        block = self._bytes
        after = position + _CENTRAL.size
        if after > len(block):
            inconsistent("its directory lists fewer members than it counts", self._start + position)
        # fmt: off
        (magic, _, system, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes,
         comment_bytes, _, _, attributes, offset) = _CENTRAL.unpack_from(block, position)
        # fmt: on
        if magic != _CENTRAL_MAGIC:
            broken("its directory has no entry where one must begin", self._start + position)
        name = block[after : after + name_bytes]
        after += name_bytes
        end = after + extra_bytes + comment_bytes
        if end > len(block):
            broken("a directory entry is longer than its directory", self._start + position)
        if FULL32 in (packed, size, offset):
            extra = block[after : after + extra_bytes]
            wide = _wide_values(extra, [size, packed, offset])
            if wide is None:
                inconsistent(
                    "its 64-bit sizes are missing", self._start + position, name.decode("latin-1")
                )
            size, packed, offset = wide
        header = Header(system, flags, method, crc, packed, size, name, attributes, offset)
        return header, end


def refuse_overlap(header: Header) -> NoReturn:
    """Raise ``archive_overlapping``: two members share bytes, as only made ones do."""
    raise InvalidInputError(
        f"the archive is refused: member {header.judge_name()[1]!r} at byte {header.offset} "
        "overlaps what follows it",
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
