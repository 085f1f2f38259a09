"""The central directory of a zip: found from the end, refused by count and size before reading.

The standard library's zipfile keeps half a kilobyte of objects per member; this keeps the
directory as it lies in the file and 16 bytes beside each entry.
Layout: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
from array import array
from typing import BinaryIO, NamedTuple, NoReturn

from app.errors import InvalidInputError
from app.uploads.members import ArchiveLimits, broken, clean_name, too_large

FLAG_ENCRYPTED = 0x0001
_FLAG_UTF8 = 0x0800
_FLAG_HIDDEN_DIRECTORY = 0x2000

_END = struct.Struct("<4sHHHHIIH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_CENTRAL = struct.Struct("<4sBBHHHHHIIIHHHHHII")
LOCAL = struct.Struct("<4sHHHHHIIIHH")
LOCAL_MAGIC = b"PK\x03\x04"
_CENTRAL_MAGIC = b"PK\x01\x02"
_END_MAGIC = b"PK\x05\x06"
_LONGEST_COMMENT = 65535
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_EXTRA_ZIP64 = 1
#: Two million entries with names and extra fields of 200 bytes fit.
_MAX_DIRECTORY_BYTES = 512 * 1024 * 1024
_CUT_SEARCH_BYTES = 1024 * 1024


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

    @property
    def name(self) -> str:
        """The name as people read it, clean."""
        try:
            # Many tools write UTF-8 without saying so; code page 437 almost never looks like it.
            return clean_name(self.raw_name.decode())
        except UnicodeDecodeError:
            if self.flags & _FLAG_UTF8:
                return clean_name(self.raw_name.decode(errors="replace"))
            return clean_name(self.raw_name.decode("cp437"))


class ZipDirectory:
    """All members of a zip by number, in the order in which they lie in the file.

    Raises:
        InvalidInputError: ``archive_broken``, ``archive_encrypted``, ``archive_overlapping``,
            ``archive_too_large``, ``archive_bomb``.
    """

    def __init__(self, file: BinaryIO, size: int, limits: ArchiveLimits) -> None:
        count, self._start, length = _read_end(file, size)
        limits.check_entries(count)
        if length > _MAX_DIRECTORY_BYTES:
            raise too_large(f"its directory has {length} bytes")
        if length < count * _CENTRAL.size:
            broken(f"a directory of {length} bytes cannot list {count} members", self._start)
        file.seek(self._start)
        self._bytes = file.read(length)
        if len(self._bytes) < length:
            broken("its directory ends early", self._start + len(self._bytes))
        if count and not self._bytes.startswith(_CENTRAL_MAGIC):
            _refuse_hidden(file)
        self._positions, self._offsets, unpacked = self._walk(count)
        self._check_overlap()
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
        positions, offsets = array("Q"), array("Q")
        position = unpacked = 0
        for _ in range(count):
            positions.append(position)
            header, position = self._parse(position)
            offsets.append(header.offset)
            unpacked += header.size
        if position != len(self._bytes):
            broken(
                f"its end record counts {count} members, its directory lists more",
                self._start + position,
            )
        if any(offsets[i] > offsets[i + 1] for i in range(count - 1)):
            order = sorted(range(count), key=offsets.__getitem__)
            positions = array("Q", (positions[i] for i in order))
            offsets = array("Q", (offsets[i] for i in order))
        return positions, offsets, unpacked

    def _check_overlap(self) -> None:
        for number in range(len(self)):
            header = self.header(number)
            end = header.offset + LOCAL.size + len(header.raw_name) + header.packed_bytes
            if end > self.limit(number):
                refuse_overlap(header)

    def _parse(self, position: int) -> tuple[Header, int]:
        """The entry at ``position`` of the directory, and where the next one begins."""
        block = self._bytes
        after = position + _CENTRAL.size
        if after > len(block):
            broken("its directory lists fewer members than it counts", self._start + position)
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
        if _FULL32 in (packed, size, offset):
            extra = block[after : after + extra_bytes]
            wide = _wide_values(extra, [size, packed, offset])
            if wide is None:
                broken(
                    "the 64-bit sizes are missing", self._start + position, name.decode("latin-1")
                )
            size, packed, offset = wide
        header = Header(system, flags, method, crc, packed, size, name, attributes, offset)
        return header, end


def refuse_overlap(header: Header) -> NoReturn:
    """Raise ``archive_overlapping``: two members share bytes, as only made ones do."""
    raise InvalidInputError(
        f"the archive is refused: member {header.name!r} at byte {header.offset} overlaps what "
        "follows it",
        code="archive_overlapping",
    )


def _read_end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Members, offset and length of the directory, as the end record has them."""
    tail_start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    found = tail.rfind(_END_MAGIC)
    while found >= 0:
        if found + _END.size <= len(tail):
            fields = _END.unpack_from(tail, found)
            if found + _END.size + fields[7] == len(tail):
                break
        found = tail.rfind(_END_MAGIC, 0, found)
    else:
        _refuse_cut(file, size)
    _, disk, directory_disk, here, count, length, start, _ = fields
    end = tail_start + found
    if _FULL16 in (disk, directory_disk, here, count) or _FULL32 in (length, start):
        wide = _read_end64(file, end)
        if wide is not None:
            disk, directory_disk, here, count, length, start, end = wide
    if disk != directory_disk or here != count or disk not in (0, _FULL16):
        broken("it is one part of a split zip", end)
    if start + length != end:
        broken(f"its directory at byte {start} does not end where the end record begins", end)
    return count, start, length


def _read_end64(file: BinaryIO, end: int) -> tuple[int, int, int, int, int, int, int] | None:
    """The wide end record before the plain one at ``end``; None where there is none."""
    file.seek(max(0, end - _LOCATOR64.size))
    locator = file.read(_LOCATOR64.size)
    if end < _LOCATOR64.size or not locator.startswith(b"PK\x06\x07"):
        return None
    _, _, start64, _ = _LOCATOR64.unpack(locator)
    if start64 + _END64.size > end - _LOCATOR64.size:
        broken("its 64-bit end record is not where it must be", end - _LOCATOR64.size)
    file.seek(start64)
    record = file.read(_END64.size)
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        broken("its 64-bit end record is missing", start64)
    _, _, _, _, disk, directory_disk, here, count, length, start = _END64.unpack(record)
    return disk, directory_disk, here, count, length, start, start64


def _wide_values(extra: bytes, values: list[int]) -> list[int] | None:
    """Size, packed bytes and offset, the full ones replaced from the 64-bit extra field."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if tag == _EXTRA_ZIP64:
            end = min(position + length, len(extra))
            for index, value in enumerate(values):
                if value == _FULL32:
                    if position + 8 > end:
                        return None
                    (values[index],) = struct.unpack_from("<Q", extra, position)
                    position += 8
            return values
        position += length
    return None


def _refuse_cut(file: BinaryIO, size: int) -> NoReturn:
    """Raise ``archive_broken`` for a zip without an end, naming the last member begun."""
    start = max(0, size - _CUT_SEARCH_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    found = tail.rfind(LOCAL_MAGIC, 0, max(0, len(tail) - LOCAL.size + len(LOCAL_MAGIC)))
    name = None
    if found >= 0:
        name_bytes = LOCAL.unpack_from(tail, found)[9]
        after = found + LOCAL.size
        name = tail[after : after + name_bytes].decode(errors="replace")
    broken("it ends without an end record, so it was cut short", size, name)


def _refuse_hidden(file: BinaryIO) -> None:
    """Raise for a directory that does not begin like one: encrypted, or broken."""
    file.seek(0)
    local = file.read(LOCAL.size)
    if len(local) == LOCAL.size and LOCAL.unpack(local)[2] & _FLAG_HIDDEN_DIRECTORY:
        raise InvalidInputError(
            "the archive's directory is encrypted; send it without", code="archive_encrypted"
        )
