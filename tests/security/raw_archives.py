"""Zips and tars written field by field, so that any field may lie."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

UTF8 = 0x0800


@dataclass
class ZipMember:
    """One member; what is None is true."""

    name: bytes
    content: bytes = b""
    method: int = 8
    flags: int = UTF8
    size: int | None = None
    packed: bytes | None = None
    packed_bytes: int | None = None
    crc: int | None = None
    system: int = 3
    mode: int = 0o100644
    local_name: bytes | None = None
    offset: int | None = None
    extra: bytes = b""
    #: Bytes of the local header and the data, where they are not written but shared.
    shared: bool = False
    _at: int = field(default=0, repr=False)

    def body(self) -> bytes:
        """The packed content."""
        if self.packed is not None:
            return self.packed
        if self.method != 8:
            return self.content
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflater.compress(self.content) + deflater.flush()

    def fields(self, body: bytes) -> tuple[int, int, int]:
        """Checksum, packed bytes and size."""
        return (
            zlib.crc32(self.content) if self.crc is None else self.crc,
            len(body) if self.packed_bytes is None else self.packed_bytes,
            len(self.content) if self.size is None else self.size,
        )


def zip_local(member: ZipMember, body: bytes) -> bytes:
    """A member's own header, before its data."""
    name = member.name if member.local_name is None else member.local_name
    crc, packed, size = member.fields(body)
    return (
        struct.pack(
            "<4sHHHHHIIIHH",
            b"PK\x03\x04",
            20,
            member.flags,
            member.method,
            0,
            33,
            crc,
            min(packed, 0xFFFFFFFF),
            min(size, 0xFFFFFFFF),
            len(name),
            0,
        )
        + name
    )


def zip_central(member: ZipMember, body: bytes, offset: int) -> bytes:
    """A member's entry in the directory."""
    crc, packed, size = member.fields(body)
    return (
        struct.pack(
            "<4sBBBBHHHHIIIHHHHHII",
            b"PK\x01\x02",
            20,
            member.system,
            20,
            0,
            member.flags,
            member.method,
            0,
            33,
            crc,
            min(packed, 0xFFFFFFFF),
            min(size, 0xFFFFFFFF),
            len(member.name),
            len(member.extra),
            0,
            0,
            0,
            member.mode << 16,
            offset if member.offset is None else member.offset,
        )
        + member.name
        + member.extra
    )


def zip_end(count: int, length: int, start: int, *, here: int | None = None) -> bytes:
    """The end record."""
    return struct.pack(
        "<4sHHHHIIH",
        b"PK\x05\x06",
        0,
        0,
        min(count if here is None else here, 0xFFFF),
        min(count, 0xFFFF),
        min(length, 0xFFFFFFFF),
        min(start, 0xFFFFFFFF),
        0,
    )


def zip_end64(count: int, length: int, start: int, at: int) -> bytes:
    """The wide end record, which lies at byte ``at``, and its locator."""
    return struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start
    ) + struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)


def raw_zip(members: Iterable[ZipMember], *, wide: bool = False, count: int | None = None) -> bytes:
    """A zip of these members; ``count`` is what its end record claims."""
    out, directory, offset, found = [], [], 0, 0
    for member in members:
        body = member.body()
        directory.append(zip_central(member, body, offset))
        found += 1
        if member.shared:
            continue
        local = zip_local(member, body)
        out += [local, body]
        offset += len(local) + len(body)
    listed = b"".join(directory)
    count = found if count is None else count
    end = (
        zip_end64(count, len(listed), offset, offset + len(listed))
        if wide or count > 65535
        else b""
    )
    return b"".join(out) + listed + end + zip_end(count, len(listed), offset)


def tar_header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    sparse_more: bool = False,
) -> bytes:
    """One header with a true checksum; a size too large for octal is in base 256."""
    block = bytearray(512)
    block[: min(len(name), 100)] = name[:100]
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    if size < 8**11:
        block[124:136] = b"%011o\x00" % size
    else:
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[136:148] = b"00000000000\x00"
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[482] = sparse_more
    return with_checksum(block)


def with_checksum(block: bytes | bytearray) -> bytes:
    """The header with the checksum that its other bytes have."""
    fixed = bytearray(block)
    fixed[148:156] = b" " * 8
    fixed[148:156] = b"%06o\x00 " % sum(fixed)
    return bytes(fixed)


def tar_member(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    """A header and its content, padded to whole blocks."""
    size = fields.pop("size", len(content))
    header = tar_header(name, size, kind, **fields)  # type: ignore[arg-type]
    return header + content + bytes(-len(content) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE`` and a line end; the length counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(**records: bytes) -> bytes:
    """An extended header for the member that follows; ``__`` in a key is a dot."""
    body = b"".join(
        pax_record(key.replace("__", ".").encode(), value) for key, value in records.items()
    )
    return tar_member(b"PaxHeader", body, b"x")


def raw_tar(*pieces: bytes) -> bytes:
    """A tar of these members, with its end mark."""
    return b"".join(pieces) + bytes(1024)
