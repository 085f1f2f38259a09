"""A gzip file read forwards, at zlib's speed whatever its headers say.

The standard library's gzip reads the file name in a header byte by byte in Python and starts a
new member for any 20 bytes, so that a few gigabytes of either keep a worker busy for an hour.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

_PACKED_BYTES = 64 * 1024
_UNPACKED_BYTES = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS
#: Honest members of a file of many are blocks of kilobytes.
_LEAST_MEMBER_BYTES = 256
_FREE_MEMBERS = 1000


class GzipError(ValueError):
    """What is read is no gzip, or damaged; ``ended`` where it only ends too early."""

    def __init__(self, detail: str, *, ended: bool = False) -> None:
        super().__init__(detail)
        self.ended = ended


class Gunzip:
    """Reads the unpacked bytes of a file, all members after another; checksums are compared.

    Memory: what one read asks for, and a third of a megabyte.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = b""
        self._members = 0
        self._inflater: zlib._Decompress | None = None
        self._unpacked = b""
        self._position = 0

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer only at the end.

        Raises:
            GzipError: the file is damaged, or ends within a member.
        """
        pieces = []
        while count > 0:
            if self._position == len(self._unpacked):
                self._unpacked, self._position = self._more(), 0
                if not self._unpacked:
                    break
            piece = self._unpacked[self._position : self._position + count]
            self._position += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _more(self) -> bytes:
        """Some further unpacked bytes; none at the end."""
        while True:
            if self._inflater is None and not self._begin_member():
                return b""
            inflater = self._inflater
            assert inflater is not None
            if not self._packed:
                self._packed = self._file.read(_PACKED_BYTES)
                if not self._packed:
                    raise GzipError("its compressed data ends early", ended=True)
            try:
                unpacked = inflater.decompress(self._packed, _UNPACKED_BYTES)
            except zlib.error as error:
                raise GzipError(f"its compression is damaged ({error})") from None
            if inflater.eof:
                self._packed, self._inflater = inflater.unused_data, None
            else:
                self._packed = inflater.unconsumed_tail
            if unpacked:
                return unpacked

    def _begin_member(self) -> bool:
        """Start on the next member; False at the end of the file, padded with zeros or not."""
        while True:
            if self._members:
                self._packed = self._packed.lstrip(b"\x00")
            if self._packed:
                break
            self._packed = self._file.read(_PACKED_BYTES)
            if not self._packed:
                return False
        self._members += 1
        if self._members > _FREE_MEMBERS + self._file.tell() // _LEAST_MEMBER_BYTES:
            raise GzipError(f"it is made of {self._members} compressed members and more")
        self._inflater = zlib.decompressobj(_GZIP)
        return True
