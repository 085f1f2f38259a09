"""Archives that lie about themselves, are damaged, or have nothing in them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import partial

from tests.security.archive_cases import (
    IMAGE,
    MIB,
    fail,
    good_tar,
    good_zip,
    refuse,
    tar_gz,
    zip_neighbours,
)
from tests.security.raw_archives import (
    UTF8,
    ZipMember,
    raw_tar,
    raw_zip,
    tar_header,
    tar_member,
    with_checksum,
    zip_central,
    zip_end,
    zip_end64,
    zip_local,
)

# --- Lies and damage ------------------------------------------------------------------------------

_TEXT = bytes(range(256)) * 40
for lie in (-1, +1, +5000):
    fail(
        f"size-lies-{lie:+}",
        "member_damaged",
        "x.jpg",
        zipped=ZipMember(b"x.jpg", _TEXT, size=len(_TEXT) + lie),
        tarred=None,
    )
fail("crc-lies", "member_damaged", "x.jpg", zipped=ZipMember(b"x.jpg", IMAGE, crc=1), tarred=None)
fail(
    "deflate-damaged",
    "member_damaged",
    "x.jpg",
    zipped=ZipMember(b"x.jpg", IMAGE, packed=b"\xff" * 300),
    tarred=None,
)
fail(
    "packed-bytes-short",
    "member_damaged",
    "x.jpg",
    zipped=ZipMember(b"x.jpg", _TEXT, method=0, packed_bytes=100),
    tarred=None,
)
refuse(
    "packed-bytes-huge",
    "archive_inconsistent",
    lambda: good_zip(ZipMember(b"x.jpg", b"", packed=bytes(10_000), size=10)),
)
refuse(
    "local-name-differs",
    "archive_inconsistent",
    lambda: good_zip(ZipMember(b"x.jpg", IMAGE, local_name=b"y.jpg")),
)
refuse(
    "member-elsewhere",
    "archive_overlapping",
    lambda: good_zip(ZipMember(b"x.jpg", IMAGE, offset=0xFFFFFF00)),
)


def _in_data() -> ZipMember:
    """A member whose header the directory places within its own data."""
    return ZipMember(b"b.jpg", bytes(5000), method=0, offset=2000, size=10, packed_bytes=10)


refuse(
    "member-in-data",
    "archive_inconsistent",
    lambda: raw_zip([ZipMember(b"a.jpg", IMAGE), _in_data()]),
)
refuse("count-lies-low", "archive_inconsistent", lambda: raw_zip(zip_neighbours(), count=200))
refuse("count-lies-high", "archive_inconsistent", lambda: raw_zip(zip_neighbours(), count=256))
refuse("count-huge", "archive_too_large", lambda: raw_zip(zip_neighbours(), count=10**9))
refuse(
    "split-zip",
    "archive_unsupported",
    lambda: good_zip()[:-22] + zip_end(255, 46 * 255, 99, here=3),
)


def _tar_size_lies(lie: int) -> bytes:
    return good_tar(tar_member(b"x.jpg", bytes(range(1, 255)) * 20, size=5080 + lie))


refuse("tar-size-short", "archive_broken", lambda: _tar_size_lies(-2000))
refuse("tar-size-long", "archive_broken", lambda: _tar_size_lies(777))
refuse(
    "tar-checksum",
    "archive_broken",
    lambda: good_tar(tar_member(b"a.jpg", IMAGE), bytes(100) + b"\x01" * 412),
)
refuse(
    "tar-size-letters",
    "archive_broken",
    lambda: good_tar(
        with_checksum(tar_header(b"x")[:124] + b"zzzzzzzzzzz\x00" + tar_header(b"x")[136:])
    ),
)
refuse(
    "tar-size-negative",
    "archive_broken",
    lambda: good_tar(with_checksum(tar_header(b"x")[:124] + b"\xff" * 12 + tar_header(b"x")[136:])),
)


def _gzip_tail(change: Callable[[bytes], bytes]) -> bytes:
    packed = tar_gz(good_tar())
    return packed[:-8] + change(packed[-8:])


refuse("gzip-crc-lies", "archive_broken", lambda: _gzip_tail(lambda end: b"\x00" * 4 + end[4:]))
refuse("gzip-size-lies", "archive_broken", lambda: _gzip_tail(lambda end: end[:4] + b"\x01" * 4))
refuse("gzip-trailing", "archive_broken", lambda: _gzip_tail(lambda end: end + b"more"))
refuse(
    "gzip-empty-members",
    "archive_broken",
    lambda: gzip.compress(b"", mtime=0) * 500_000 + tar_gz(good_tar()),
)
refuse(
    "gzip-header-of-megabytes",
    "archive_truncated",
    lambda: b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03" + b"n" * (64 * MIB),
)


def _cut(make: Callable[[], bytes], share: int) -> bytes:
    whole = make()
    return whole[: len(whole) * share // 100]


_WHOLE: dict[str, Callable[[], bytes]] = {
    "zip": good_zip,
    "tar": good_tar,
    "tar.gz": lambda: tar_gz(good_tar()),
}
for shape, make in _WHOLE.items():
    for share in (10, 50, 99):
        refuse(f"truncated-{share}-{shape}", "archive_truncated", partial(_cut, make, share))


def _wide(change: Callable[[bytes, int], bytes]) -> bytes:
    """A zip with 64-bit end records, of which ``change`` gets the bytes and their offset."""
    whole = good_zip(wide=True)
    at = whole.rindex(b"PK\x06\x06")
    return whole[:at] + change(whole[at:], at)


refuse(
    "zip64-count-differs",
    "archive_inconsistent",
    lambda: _wide(lambda end, at: end[:24] + struct.pack("<QQ", 9, 9) + end[40:]),
)
refuse(
    "zip64-start-differs",
    "archive_inconsistent",
    lambda: _wide(lambda end, at: end[:48] + struct.pack("<Q", 1) + end[56:]),
)
refuse(
    "zip64-locator-lost",
    "archive_inconsistent",
    lambda: _wide(lambda end, at: end[:64] + struct.pack("<Q", 2**63) + end[72:]),
)
refuse(
    "zip64-locator-elsewhere",
    "archive_inconsistent",
    lambda: _wide(lambda end, at: end[:64] + struct.pack("<Q", 0) + end[72:]),
)
refuse(
    "zip64-sizes-missing",
    "archive_inconsistent",
    lambda: good_zip(ZipMember(b"x.jpg", IMAGE, size=2**40)),
)
refuse(
    "zip64-sizes-huge",
    "archive_too_large",
    lambda: good_zip(
        ZipMember(b"x.jpg", IMAGE, size=2**40, extra=struct.pack("<HHQ", 1, 8, 2**63))
    ),
)


def _huge_directory() -> bytes:
    # A hole of 300 MiB where the directory would lie; nothing is written for it on disk.
    length = 300 * MIB
    local = zip_local(ZipMember(b"x.jpg"), b"")
    return (
        local
        + bytes(length)
        + zip_end64(1, length, len(local), len(local) + length)
        + zip_end(1, length, len(local))
    )


refuse("zip64-directory-huge", "archive_too_large", _huge_directory)

refuse("prepended-stub", "archive_prepended", lambda: b"MZ\x90\x00" * 500 + good_zip())
refuse("prepended-stub-shifted", "archive_prepended", lambda: _shifted(b"#!/bin/sh\n" * 50))
refuse("prepended-zip", "archive_prepended", lambda: good_zip() + good_zip())
refuse("prepended-zip-shifted", "archive_prepended", lambda: _shifted(good_zip()))


def _shifted(before: bytes) -> bytes:
    """Data before a zip whose offsets know of it, so that it is whole where it lies."""
    body = ZipMember(b"a.jpg", IMAGE).body()
    member = ZipMember(b"a.jpg", IMAGE)
    local = zip_local(member, body)
    entry = zip_central(member, body, len(before))
    start = len(before) + len(local) + len(body)
    return before + local + body + entry + zip_end(1, len(entry), start)


def _encrypted_directory() -> bytes:
    body = b"\x99" * 500
    local = zip_local(ZipMember(b"1", flags=0x2041), b"")
    return local + body + zip_end(3, len(body), len(local))


refuse("encrypted-directory", "archive_encrypted", _encrypted_directory)

# --- Nothing in it, and labels --------------------------------------------------------------------

refuse("no-members-zip", "archive_empty", lambda: raw_zip([]))
refuse("no-members-tar", "archive_empty", lambda: raw_tar(bytes(512)))
refuse(
    "folders-only-zip",
    "archive_empty",
    lambda: raw_zip(ZipMember(b"f%d/" % n, mode=0o40755) for n in range(300)),
)
refuse(
    "folders-only-tar",
    "archive_empty",
    lambda: raw_tar(*(tar_member(b"f%d/" % n, kind=b"5") for n in range(300))),
)


def _million_empty() -> bytes:
    """A million members without a byte, made by filling in names and offsets."""
    local = zip_local(ZipMember(b"0000000", method=0), b"")
    entry = zip_central(ZipMember(b"0000000", method=0), b"", 0)
    count, step = 1_000_000, len(local)
    names = [b"%07d" % number for number in range(count)]
    head, place = local[:-7], struct.Struct("<I").pack
    directory = b"".join(
        entry[:42] + place(number * step) + name for number, name in enumerate(names)
    )
    start = count * step
    end = zip_end64(count, len(directory), start, start + len(directory))
    end += zip_end(count, len(directory), start)
    return b"".join(head + name for name in names) + directory + end


refuse("million-empty-zip", "archive_empty", _million_empty)

_LABELS = b"filename,label\ngood/000.jpg,cat\n"
refuse(
    "labels-link",
    "labels_invalid",
    lambda: good_zip(ZipMember(b"labels.csv", _LABELS, mode=0o120777)),
)
refuse(
    "labels-encrypted",
    "labels_invalid",
    lambda: good_zip(ZipMember(b"labels.csv", _LABELS, flags=UTF8 | 1)),
)
refuse(
    "labels-huge",
    "archive_too_large",
    lambda: good_zip(ZipMember(b"labels.csv", _LABELS, size=200 * MIB, packed=_TEXT * 1000)),
)
