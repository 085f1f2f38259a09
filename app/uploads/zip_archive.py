"""Zip archives: members read in a row, each local header checked against the directory."""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from app.errors import ItemError
from app.uploads.members import ArchiveLimits, Entry, broken, inconsistent
from app.uploads.names import Kind, Refusal
from app.uploads.reader import Archive
from app.uploads.zip_directory import (
    FLAG_ENCRYPTED,
    Header,
    ZipDirectory,
    judge_raw_name,
    refuse_overlap,
)
from app.uploads.zip_end import LOCAL, LOCAL_MAGIC

_STORED, _DEFLATED = 0, 8


class ZipArchive(Archive):
    """A zip; any member can be reached without reading the ones before it."""

    format = "zip"

    def __init__(self, file: BinaryIO, size: int, limits: ArchiveLimits) -> None:
        super().__init__(file, size, limits)
        self._directory = ZipDirectory(file, size, limits)

    def _entries(self) -> Iterator[Entry]:
        for number in range(len(self._directory)):
            raw_name, size, flags, method, mode = self._directory.brief(number)
            kind, name, refusal = judge_raw_name(raw_name, flags)
            if refusal is None and kind is not Kind.SKIPPED:
                refusal = _refusal(flags, method, mode)
            yield kind, name, size, refusal, number

    def _content(self, entry: Entry) -> bytes:
        _, name, _, _, number = entry
        header = self._directory.header(number)
        packed, start = self._packed(header, name, self._directory.limit(number))
        if header.method == _DEFLATED:
            content = _inflate(packed, header, name, start)
        else:
            content = bytes(packed)
        if len(content) != header.size:
            found = len(content) if len(content) < header.size else f"more than {header.size}"
            _damaged(f"it has {found} bytes, not {header.size}", start, name)
        if zlib.crc32(content) != header.crc:
            _damaged("its checksum does not match its content", start, name)
        return content

    def _packed(self, header: Header, name: str, limit: int) -> tuple[memoryview, int]:
        """The packed bytes of a member, which lie before ``limit``, and their offset."""
        size, packed_bytes = header.size, header.packed_bytes
        # Deflate never makes much more of what it cannot shorten; more would only cost memory.
        if packed_bytes > (size if header.method == _STORED else size + size // 4 + 1024):
            inconsistent(f"{packed_bytes} packed bytes cannot be {size} bytes", header.offset, name)
        file = self._file
        file.seek(header.offset)
        local = file.read(LOCAL.size)
        if len(local) < LOCAL.size or not local.startswith(LOCAL_MAGIC):
            inconsistent("there is no member where the directory says", header.offset, name)
        _, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = LOCAL.unpack(local)
        start = header.offset + LOCAL.size + name_bytes + extra_bytes
        if start + packed_bytes > limit:
            refuse_overlap(header)
        block = file.read(name_bytes + extra_bytes + packed_bytes)
        if (
            block[:name_bytes] != header.raw_name
            or method != header.method
            or (flags ^ header.flags) & FLAG_ENCRYPTED
        ):
            inconsistent("its own header and the directory disagree", header.offset, name)
        # Not copied: the bytes of the largest member are held twice at most.
        packed = memoryview(block)[name_bytes + extra_bytes :]
        if len(packed) < packed_bytes:
            broken("it ends early", start + len(packed), name, code="archive_truncated")
        return packed, start


def _inflate(packed: memoryview, header: Header, name: str, start: int) -> bytes:
    """The content, never more than one byte over what the directory says."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, header.size + 1)
    except zlib.error as error:
        _damaged(f"its compression is damaged ({error})", start, name)
    if len(content) <= header.size and not inflater.eof:
        _damaged("its compressed data ends early", start, name)
    return content


def _damaged(detail: str, start: int, name: str) -> NoReturn:
    """Raise ``member_damaged``: the directory still says where every other member lies."""
    raise ItemError(
        f"{name} is damaged, its data begins at byte {start} of the archive: {detail}",
        code="member_damaged",
    )


def _refusal(flags: int, method: int, mode: int) -> Refusal | None:
    """Why this member is not read, by its header alone."""
    if flags & FLAG_ENCRYPTED:
        return Refusal("member_encrypted", "it is encrypted")
    if method not in (_STORED, _DEFLATED):
        return Refusal(
            "member_method_unsupported",
            f"its compression method {method} is not supported, use deflate or none",
        )
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return Refusal("member_link", "it is a link")
    if kind not in (0, stat.S_IFREG):
        return Refusal("member_special", "it is no regular file")
    return None
