"""The end of a zip: where its directory lies, and what it claims to hold.

Layout: PKWARE APPNOTE 6.3.10, sections 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple, NoReturn

from app.errors import InvalidInputError
from app.uploads.members import broken, inconsistent

LOCAL = struct.Struct("<4sHHHHHIIIHH")
LOCAL_MAGIC = b"PK\x03\x04"
FULL32 = 0xFFFFFFFF
_FULL16 = 0xFFFF
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_END_MAGIC = b"PK\x05\x06"
_LONGEST_COMMENT = 65535
_CUT_SEARCH_BYTES = 1024 * 1024


class _End(NamedTuple):
    """The end record; ``offset`` is its own in the file."""

    disk: int
    directory_disk: int
    here: int
    members: int
    length: int
    start: int
    offset: int


def find_end(file: BinaryIO, size: int) -> _End | None:
    """The plain end record, the last one whose comment reaches to the end of the file."""
    tail_start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    found = tail.rfind(_END_MAGIC)
    while found >= 0:
        if found + _END.size <= len(tail):
            _, disk, directory_disk, here, count, length, start, comment = _END.unpack_from(
                tail, found
            )
            if found + _END.size + comment == len(tail):
                return _End(disk, directory_disk, here, count, length, start, tail_start + found)
        found = tail.rfind(_END_MAGIC, 0, found)
    return None


def read_end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Members, offset and length of the directory, as the end record has them.

    Raises:
        InvalidInputError: ``archive_truncated``, ``archive_inconsistent``,
            ``archive_prepended``, or ``archive_unsupported`` for a part of a split zip.
    """
    end = find_end(file, size)
    if end is None:
        _refuse_cut(file, size)
    # Asked for even where the plain record says all: other readers believe the wide one.
    end = _read_end64(file, end) or end
    if end.disk != end.directory_disk or end.here != end.members or end.disk not in (0, _FULL16):
        raise InvalidInputError(
            "the upload is one part of a split zip; send one whole zip", code="archive_unsupported"
        )
    if end.start + end.length < end.offset:
        raise prepended(f"{end.offset - end.start - end.length} bytes")
    if end.start + end.length > end.offset:
        inconsistent(
            f"its directory at byte {end.start} does not end where the end record begins",
            end.offset,
        )
    return end.members, end.start, end.length


def prepended(what: str) -> InvalidInputError:
    """The error of a zip behind other data, which two readers may read as two archives."""
    return InvalidInputError(
        f"the archive is refused: {what} lie before the first member of the zip, as in a "
        "program that unpacks itself; send the zip alone",
        code="archive_prepended",
    )


def _read_end64(file: BinaryIO, plain: _End) -> _End | None:
    """The wide end record before the plain one; None where there is none."""
    end = plain.offset
    file.seek(max(0, end - _LOCATOR64.size))
    locator = file.read(_LOCATOR64.size)
    if end < _LOCATOR64.size or not locator.startswith(b"PK\x06\x07"):
        return None
    _, _, start64, _ = _LOCATOR64.unpack(locator)
    if start64 + _END64.size > end - _LOCATOR64.size:
        inconsistent("its 64-bit end record is not where it must be", end - _LOCATOR64.size)
    file.seek(start64)
    record = file.read(_END64.size)
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        inconsistent("its 64-bit end record is missing", start64)
    disk, directory_disk, here, members, length, start = _END64.unpack(record)[4:]
    wide = _End(disk, directory_disk, here, members, length, start, start64)
    full = (_FULL16,) * 4 + (FULL32,) * 2
    for short, long, unknown in zip(plain, wide, full, strict=False):
        if short not in (long, unknown):
            inconsistent(f"its two end records say {short} and {long}", start64)
    return wide


def _refuse_cut(file: BinaryIO, size: int) -> NoReturn:
    """Raise ``archive_truncated`` for a zip without an end, naming the last member begun."""
    start = max(0, size - _CUT_SEARCH_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    found = tail.rfind(LOCAL_MAGIC, 0, max(0, len(tail) - LOCAL.size + len(LOCAL_MAGIC)))
    name = None
    if found >= 0:
        name_bytes = LOCAL.unpack_from(tail, found)[9]
        after = found + LOCAL.size
        name = tail[after : after + name_bytes].decode(errors="replace")
    broken("it ends without an end record", size, name, code="archive_truncated")
