"""Tar and tar.gz archives, read as a stream of 512-byte headers and contents.

The standard library's tarfile reads an extended header of any length into memory and follows
chains of them by recursion; this reader bounds both. Formats: POSIX.1-1988 ustar, POSIX.1-2001
pax, GNU long names, and the old v7.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from app.errors import InvalidInputError
from app.uploads.gunzip import Gunzip, GzipError
from app.uploads.members import ArchiveLimits, Entry, broken
from app.uploads.names import Kind, Refusal, judge_name
from app.uploads.reader import Archive

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
#: What is read of a header: name, size, checksum, type, magic, prefix.
_FIELDS = struct.Struct("100s24x12s12x8sB100x6s82x155s12x")
_SKIP_BYTES = 1024 * 1024
#: Extended headers hold a path and some times; nothing honest comes near.
_MAX_EXTENDED_BYTES = 1024 * 1024
_MAX_EXTENDED_RECORDS = 1000
_REGULAR = b"0\x007"
_LONG_NAME, _LONG_LINK = ord("L"), ord("K")
_PAX, _PAX_SOLARIS, _PAX_GLOBAL = ord("x"), ord("X"), ord("g")
#: A directory, and the label of a volume.
_NO_FILE = b"5V"
#: Types that say something of the member that follows.
_EXTENDED = frozenset((_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS, _PAX_GLOBAL))
#: Types that never have content, whatever their size field says.
_BODYLESS = b"123456"
_SPARSE = ord("S")
_LINK = Refusal("member_link", "it is a link")
_DEVICE = Refusal("member_special", "it is a device")
_REFUSALS = {
    ord("1"): _LINK,
    ord("2"): _LINK,
    ord("3"): _DEVICE,
    ord("4"): _DEVICE,
    ord("6"): Refusal("member_special", "it is a pipe"),
    _SPARSE: Refusal("member_sparse", "it is a sparse file"),
}
_IRREGULAR = Refusal("member_special", "it is no regular file")
#: Where GNU's old sparse header, and each block that goes on with it, say that one more follows.
_SPARSE_MORE, _SPARSE_MORE_AGAIN = 482, 504


class TarArchive(Archive):
    """A tar; member N is reached by passing the ones before it."""

    def __init__(self, file: BinaryIO, size: int, limits: ArchiveLimits, *, gzipped: bool) -> None:
        super().__init__(file, size, limits)
        self._gzipped = gzipped
        self.format = "tar.gz" if gzipped else "tar"
        self._gunzip = Gunzip(file)
        #: Byte of the (unpacked) tar that is read next.
        self._offset = 0
        #: Bytes of the last entry's content that were not read yet, and of its padding.
        self._left = 0
        self._padding = 0
        #: The member that is being read, for the error that names it.
        self._member: str | None = None

    def _entries(self) -> Iterator[Entry]:
        self._rewind()
        entries = 0
        long_name: bytes | None = None
        long_size: int | None = None
        sparse = False
        while True:
            start = self._offset
            block = self._take(_BLOCK, "a header")
            if self._gzipped and start == 0 and not is_tar(block):
                raise InvalidInputError(
                    "the upload is compressed with gzip but holds no tar",
                    code="archive_unsupported",
                )
            if block == _ZEROS:
                self._finish()
                return
            kind, name, size, has_map = _parse(block, start)
            entries += 1
            self._limits.check_entries(entries)
            if kind in _EXTENDED:
                body = self._extended(size, start)
                if kind == _LONG_NAME:
                    long_name = body.rstrip(b"\x00")
                elif kind in (_PAX, _PAX_SOLARIS):
                    records = _parse_pax(body, start)
                    long_name = records.get(b"path", long_name)
                    sparse = any(key.startswith(b"GNU.sparse.") for key in records)
                    if b"size" in records:
                        long_size = _decimal(records[b"size"], start)
                continue
            if has_map:
                self._pass_map()
            if long_name is not None:
                name = long_name
            if long_size is not None:
                size = long_size
            yield self._begin(kind, name, size, sparse, start)
            if self._left or self._padding:
                self._skip(self._left + self._padding)
            self._member = None
            long_name, long_size, sparse = None, None, False

    def _begin(self, typeflag: int, raw: bytes, size: int, sparse: bool, start: int) -> Entry:
        self._left = 0 if typeflag in _BODYLESS else size
        self._padding = -self._left % _BLOCK
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = None
        kind, name, refusal = judge_name(raw, text)
        if typeflag in _NO_FILE or not name:
            kind, refusal = Kind.SKIPPED, None
        elif kind is not Kind.SKIPPED and refusal is None:
            if sparse:
                refusal = _REFUSALS[_SPARSE]
            elif typeflag not in _REGULAR:
                refusal = _REFUSALS.get(typeflag, _IRREGULAR)
        self._member = name
        return kind, name, self._left, refusal, start

    def _content(self, entry: Entry) -> bytes:
        _, _, size, _, _ = entry
        content = self._take(size, "the content")
        self._left = 0
        return content

    def _extended(self, size: int, start: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            broken(f"an extended header claims {size} bytes", start)
        body = self._take(size, "an extended header")
        self._skip(-size % _BLOCK)
        return body

    def _pass_map(self) -> None:
        """Pass the blocks with the holes of a sparse file, which its size does not count."""
        while self._take(_BLOCK, "a sparse map")[_SPARSE_MORE_AGAIN]:
            pass

    def _rewind(self) -> None:
        self._file.seek(0)
        self._offset = self._left = self._padding = 0
        self._member = None
        if self._gzipped:
            self._gunzip = Gunzip(self._file)

    def _take(self, count: int, what: str) -> bytes:
        """Exactly ``count`` bytes of the tar, or ``archive_broken``."""
        data = self._unzip(count) if self._gzipped else self._file.read(count)
        self._offset += len(data)
        if len(data) < count:
            self._break(f"it ends in {what}", code="archive_truncated")
        return data

    def _skip(self, count: int) -> None:
        if not self._gzipped:
            if self._offset + count > self._size:
                self._offset = self._size
                self._break("it ends in the content", code="archive_truncated")
            self._offset += count
            self._file.seek(self._offset)
            return
        while count > 0:
            count -= len(self._take(min(count, _SKIP_BYTES), "the content"))

    def _unzip(self, count: int) -> bytes:
        try:
            data = self._gunzip.read(count)
        except GzipError as error:
            self._break(str(error), code="archive_truncated" if error.ended else "archive_broken")
        self._limits.check_expansion(self._file.tell(), self._offset + len(data))
        return data

    def _finish(self) -> None:
        """Read on a little past the end mark, so that gzip compares its checksum."""
        if self._gzipped:
            self._offset += len(self._unzip(_SKIP_BYTES))

    def _break(self, detail: str, *, code: str) -> NoReturn:
        where = ""
        if self._gzipped:
            where = f" of the unpacked tar, about byte {self._file.tell()} of the file,"
        broken(detail, self._offset, self._member, where=where, code=code)


def is_tar(head: bytes) -> bool:
    """Whether these 512 bytes are the first header of a tar, or the end mark of an empty one."""
    if len(head) < _BLOCK:
        return False
    return head[257:262] == b"ustar" or head == _ZEROS or _checksum_fits(head, head[148:156])


def _checksum_fits(block: bytes, field: bytes) -> bool:
    try:
        claimed = _octal(field)
    except ValueError:
        return False
    # The sum is taken with the checksum's own field as eight spaces. An Adler sum has it in its low
    # half, plus one, modulo 65521, and is twenty times as quick as adding bytes in Python.
    found = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(field) & 0xFFFF) + 8 * 0x20
    return (found - claimed) % 65521 == 0


def _parse(block: bytes, start: int) -> tuple[int, bytes, int, bool]:
    """Type, name and size of a member, and whether further blocks of a sparse map come first."""
    name, size_field, checksum, kind, magic, prefix = _FIELDS.unpack(block)
    if not _checksum_fits(block, checksum):
        broken("there is no header where one must begin", start)
    try:
        size = _octal(size_field) if size_field[0] < 0x80 else _binary(size_field)
    except ValueError:
        broken("a header's size is no number", start)
    if not 0 <= size < 1 << 62:
        broken(f"a header claims {size} bytes", start)
    name = name.partition(b"\x00")[0]
    # GNU's own magic ends in two spaces and uses the prefix field for times.
    if magic == b"ustar\x00" and prefix[0]:
        name = prefix.partition(b"\x00")[0] + b"/" + name
    return kind, name, size, kind == _SPARSE and block[_SPARSE_MORE] != 0


def _binary(raw: bytes) -> int:
    """A number that octal digits have no room for: GNU's base 256 behind a set top bit."""
    value = int.from_bytes(raw, "big", signed=True)
    return value + (1 << (8 * len(raw) - 1)) if raw[0] == 0x80 else value


def _octal(raw: bytes) -> int:
    digits = raw.partition(b"\x00")[0].strip(b" ")
    if digits.isdigit():
        return int(digits, 8)
    if digits:
        raise ValueError("not octal")
    return 0


def _parse_pax(body: bytes, start: int) -> dict[bytes, bytes]:
    """The records of an extended header, each ``LENGTH KEY=VALUE`` and a line end."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        digits = body[position : position + 20].partition(b" ")[0]
        length = _decimal(digits, start)
        record = body[position + len(digits) + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or position + length > len(body):
            broken("an extended header is garbled", start)
        records[key] = value[:-1]
        position += length
        if len(records) > _MAX_EXTENDED_RECORDS:
            broken(f"an extended header has over {_MAX_EXTENDED_RECORDS} records", start)
    return records


def _decimal(raw: bytes, start: int) -> int:
    if not raw.isdigit() or len(raw) > 18:
        broken("an extended header is garbled", start)
    return int(raw)
