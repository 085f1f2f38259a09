"""Archives inside archives, bombs, and members that share their bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct

from tests.security.archive_cases import (
    IMAGE,
    MIB,
    fail,
    good_zip,
    refuse,
    tar_gz,
)
from tests.security.raw_archives import (
    ZipMember,
    raw_tar,
    raw_zip,
    tar_header,
    tar_member,
    zip_central,
    zip_end,
    zip_local,
)

# --- Archives inside archives, and bombs ----------------------------------------------------------


def _nested(depth: int = 6) -> bytes:
    inner = raw_zip([ZipMember(b"zeros", bytes(10 * MIB))])
    for level in range(depth):
        inner = raw_zip([ZipMember(b"%d/%d.zip" % (level, n), inner) for n in range(10)])
    return inner


fail(
    "nested-zip",
    "unsupported_format",
    "inner.zip",
    zipped=ZipMember(b"inner.zip", _nested()),
    tarred=tar_member(b"inner.zip", _nested()),
)
fail(
    "nested-tar.gz",
    "unsupported_format",
    "inner.tgz",
    zipped=ZipMember(b"inner.tgz", tar_gz(raw_tar(tar_member(b"a.jpg", IMAGE)))),
    tarred=tar_member(b"inner.tgz", tar_gz(raw_tar(tar_member(b"a.jpg", IMAGE)))),
)


def _zeros_tar(megabytes: int) -> bytes:
    """A tar of zeros as gzip, made without holding them."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as packed:
        packed.write(tar_header(b"zeros.jpg", megabytes * MIB))
        for _ in range(megabytes):
            packed.write(bytes(MIB))
    return out.getvalue()


refuse("bomb-zip", "archive_bomb", lambda: good_zip(ZipMember(b"0.jpg", bytes(80 * MIB))))
refuse("bomb-gzip", "archive_bomb", lambda: _zeros_tar(80))
refuse("bomb-gzip-bare", "archive_unsupported", lambda: gzip.compress(b"0" * (80 * MIB), mtime=0))
refuse("bomb-gzip-twice", "archive_unsupported", lambda: gzip.compress(_zeros_tar(80), mtime=0))
refuse("bomb-bz2", "archive_unsupported", lambda: bz2.compress(bytes(80 * MIB)))
refuse("bomb-xz", "archive_unsupported", lambda: lzma.compress(bytes(80 * MIB), preset=0))
refuse(
    "bomb-bz2-member",
    "archive_bomb",
    lambda: good_zip(
        ZipMember(b"0.jpg", method=12, packed=bz2.compress(bytes(80 * MIB)), size=80 * MIB)
    ),
)
refuse(
    "bomb-claimed",
    "archive_too_large",
    lambda: good_zip(*[ZipMember(b"%d.jpg" % n, IMAGE, size=0xFFFFFFF0) for n in range(60)]),
)


def _overlapping() -> bytes:
    """250 members of 20 MB that are one: 5 GB out of 40 KB."""
    body = ZipMember(b"a.jpg", bytes(20 * MIB)).body()
    first = ZipMember(b"a.jpg", packed=body, size=20 * MIB, crc=0)
    rest = [
        ZipMember(b"a.jpg", packed=body, size=20 * MIB, crc=0, offset=0, shared=True)
        for _ in range(249)
    ]
    return raw_zip([first, *rest])


def _quoting() -> bytes:
    """Each member's data begins with the next one's header, as in the best known such bomb."""
    kernel = ZipMember(b"00", bytes(20 * MIB))
    body, size = kernel.body(), 20 * MIB
    tail = b""
    members: list[tuple[ZipMember, bytes]] = []
    for number in reversed(range(250)):
        name = b"%03d" % number
        if members:
            quote = struct.pack("<BHH", 0, len(tail[:33]), 0xFFFF ^ len(tail[:33]))
            body, size = quote + tail, size + 33
        member = ZipMember(name, packed=body, size=size, crc=0)
        members.append((member, body))
        tail = zip_local(member, body) + body
    members.reverse()
    # From one member's header to the next: the header, and the five bytes that quote.
    directory = b"".join(
        zip_central(member, body, number * (33 + 5))
        for number, (member, body) in enumerate(members)
    )
    return tail + directory + zip_end(250, len(directory), len(tail))


refuse("overlapping", "archive_overlapping", _overlapping)
refuse("overlapping-quotes", "archive_overlapping", _quoting)
