"""Archives that somebody made to harm, each with what becomes of it.

``CASES`` are made on the spot; ``python -m tests.security.hostile_archives FOLDER`` writes them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.security.raw_archives import (
    UTF8,
    ZipMember,
    pax,
    pax_record,
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
from tests.unit.archives import image_bytes

MIB = 1024 * 1024
IMAGE = image_bytes()
#: What every archive that is not refused as a whole holds beside the bad members.
NEIGHBOURS = [f"good/{number:03}.jpg" for number in range(255)]


class Case(NamedTuple):
    """``refused`` is the archive's code; else ``failed`` are the bad members' names and codes.

    ``taken`` are further members that become images.
    """

    name: str
    make: Callable[[], bytes]
    refused: str | None = None
    failed: Mapping[str, str] = MappingProxyType({})
    taken: tuple[str, ...] = ()


CASES: list[Case] = []


def _zip_neighbours() -> list[ZipMember]:
    return [ZipMember(name.encode(), IMAGE) for name in NEIGHBOURS]


@cache
def _tar_neighbours() -> bytes:
    return b"".join(tar_member(name.encode(), IMAGE) for name in NEIGHBOURS)


def good_zip(*bad: ZipMember, wide: bool = False) -> bytes:
    """A zip with all neighbours, the bad members in their midst."""
    neighbours = _zip_neighbours()
    return raw_zip([*neighbours[:100], *bad, *neighbours[100:]], wide=wide)


def good_tar(*bad: bytes) -> bytes:
    """A tar with all neighbours behind the bad members."""
    return raw_tar(*bad, _tar_neighbours())


def tar_gz(tar: bytes) -> bytes:
    """Compressed, always to the same bytes."""
    return gzip.compress(tar, 6, mtime=0)


def refuse(name: str, code: str, make: Callable[[], bytes]) -> None:
    """A case that is refused as a whole."""
    CASES.append(Case(name, make, refused=code))


def fail(
    name: str, code: str, shown: str, *, zipped: ZipMember | None, tarred: bytes | None
) -> None:
    """A member that fails alone, in a zip, a tar and a tar.gz."""
    if zipped is not None:
        CASES.append(Case(f"{name}-zip", lambda: good_zip(zipped), failed={shown: code}))
    if tarred is not None:
        CASES.append(Case(f"{name}-tar", lambda: good_tar(tarred), failed={shown: code}))
        CASES.append(Case(f"{name}-tar.gz", lambda: tar_gz(good_tar(tarred)), failed={shown: code}))


# --- Names ------------------------------------------------------------------------------------


def _named(name: str, code: str, raw: bytes, shown: str, flags: int = UTF8) -> None:
    tar = (
        tar_member(raw, IMAGE)
        if len(raw) <= 100 and b"\x00" not in raw
        else pax(path=raw) + (tar_member(b"short", IMAGE))
    )
    fail(name, code, shown, zipped=ZipMember(raw, IMAGE, flags=flags), tarred=tar)


_named("climbing", "member_path_unsafe", b"a/../../x.jpg", "a/../../x.jpg")
_named("climbing-backslash", "member_path_unsafe", b"..\\x.jpg", "../x.jpg")
_named("absolute", "member_path_unsafe", b"/etc/passwd", "/etc/passwd")
_named("drive", "member_path_unsafe", b"C:\\x\\y.jpg", "C:/x/y.jpg")
_named("share", "member_path_unsafe", b"\\\\host\\x.jpg", "//host/x.jpg")
_named("nul-name", "member_name_invalid", b"a.jpg\x00.exe", "a.jpg\ufffd.exe")
_named("control-name", "member_name_invalid", b"a\x1b[2Jb\r\n.jpg", "a\ufffd[2Jb\ufffd\ufffd.jpg")
_named("reversed-name", "member_name_invalid", "a\u202egpj.exe".encode(), "a\ufffdgpj.exe")
_named("not-utf8-name", "member_name_invalid", b"a\xff\xfe.jpg", "a\ufffd\ufffd.jpg")
_named("reserved-name", "member_name_invalid", b"x/Com1.jpg", "x/Com1.jpg")
_named("reserved-folder", "member_name_invalid", b"x/NUL/1.jpg", "x/NUL/1.jpg")
_named("overlong-name", "member_name_invalid", b"n" * 60000, "n" * 1024)


def _twins(*names: str) -> None:
    """Names that are equal to somebody, but as many items to us."""
    label = f"twins-{names[1].encode().hex()}-{len(set(names))}"
    zipped = [ZipMember(name.encode(), IMAGE) for name in names]
    tarred = [tar_member(name.encode(), IMAGE) for name in names]
    CASES.append(Case(f"{label}-zip", lambda: good_zip(*zipped), taken=names))
    CASES.append(Case(f"{label}-tar", lambda: good_tar(*tarred), taken=names))


_twins("A.jpg", "a.jpg")
_twins("a.jpg", "a.jpg")
_twins("caf\u00e9.jpg", "cafe\u0301.jpg")

# --- What is no file ----------------------------------------------------------------------------

fail(
    "symlink",
    "member_link",
    "link.jpg",
    zipped=ZipMember(b"link.jpg", b"/etc/passwd", mode=0o120777),
    tarred=tar_member(b"link.jpg", kind=b"2", link=b"/etc/passwd"),
)
fail(
    "hard-link",
    "member_link",
    "link.jpg",
    zipped=None,
    tarred=tar_member(b"link.jpg", kind=b"1", link=b"../../etc/passwd"),
)
for kind, mode, what in ((b"3", 0o020644, "character"), (b"4", 0o060644, "block")):
    fail(
        f"{what}-device",
        "member_special",
        "device",
        zipped=ZipMember(b"device", mode=mode),
        tarred=tar_member(b"device", kind=kind),
    )
fail(
    "pipe",
    "member_special",
    "pipe",
    zipped=ZipMember(b"pipe", mode=0o010644),
    tarred=tar_member(b"pipe", kind=b"6"),
)
fail("odd-kind", "member_special", "odd", zipped=None, tarred=tar_member(b"odd", IMAGE, kind=b"Z"))
fail(
    "encrypted",
    "member_encrypted",
    "x.jpg",
    zipped=ZipMember(b"x.jpg", IMAGE, flags=UTF8 | 1),
    tarred=None,
)
fail(
    "encrypted-aes",
    "member_encrypted",
    "x.jpg",
    zipped=ZipMember(b"x.jpg", IMAGE, flags=UTF8 | 1, method=99),
    tarred=None,
)
for method, body in ((97, IMAGE), (12, bz2.compress(IMAGE)), (14, lzma.compress(IMAGE))):
    fail(
        f"method-{method}",
        "member_method_unsupported",
        "x.jpg",
        zipped=ZipMember(b"x.jpg", IMAGE, method=method, packed=body),
        tarred=None,
    )

# --- Sparse files and extended headers ------------------------------------------------------------


def _old_sparse() -> bytes:
    # Four holes fit the header; the map goes on in two more blocks that its size does not count.
    more = bytearray(512)
    more[504] = 1
    header = tar_header(b"sparse.jpg", 512, b"S", magic=b"ustar  \x00", sparse_more=True)
    return header + bytes(more) + bytes(512) + IMAGE.ljust(512, b"\x00")[:512]


fail("sparse-gnu", "member_sparse", "sparse.jpg", zipped=None, tarred=_old_sparse())
for version in ("major", "size", "map"):
    fail(
        f"sparse-pax-{version}",
        "member_sparse",
        "sparse.jpg",
        zipped=None,
        tarred=pax(**{f"GNU__sparse__{version}": b"1"}) + tar_member(b"sparse.jpg", IMAGE),
    )
CASES.append(
    Case(
        "pax-size-holds",
        lambda: good_tar(
            pax(size=b"%d" % len(IMAGE)) + tar_member(b"wide.jpg", IMAGE, size=0), b""
        ),
        taken=("wide.jpg",),
    )
)
refuse(
    "pax-size-lies",
    "archive_broken",
    lambda: good_tar(pax(size=b"5") + tar_member(b"wide.jpg", bytes(range(256)) * 8)),
)
refuse(
    "pax-size-beyond",
    "archive_truncated",
    lambda: good_tar(pax(size=b"9" * 18) + tar_member(b"wide.jpg", IMAGE)),
)
refuse(
    "pax-size-negative",
    "archive_broken",
    lambda: good_tar(pax(size=b"-1") + tar_member(b"wide.jpg", IMAGE)),
)
refuse(
    "pax-garbled",
    "archive_broken",
    lambda: good_tar(tar_member(b"PaxHeader", b"99999999999 path=x\n", b"x")),
)
refuse(
    "pax-gigabyte",
    "archive_broken",
    lambda: raw_tar(tar_header(b"PaxHeader", 1 << 30, b"x"), bytes(2 * MIB)),
)
refuse(
    "pax-records",
    "archive_broken",
    lambda: good_tar(
        tar_member(b"PaxHeader", b"".join(pax_record(b"%d" % n, b"") for n in range(60_000)), b"x")
    ),
)
for kind in (b"L", b"K"):
    refuse(
        f"long-name-gigabyte-{kind.decode()}",
        "archive_broken",
        partial(raw_tar, tar_header(b"././@LongLink", 1 << 30, kind), bytes(2 * MIB)),
    )
refuse(
    "header-of-exabytes",
    "archive_broken",
    lambda: good_tar(tar_header(b"huge.jpg", (1 << 62) + 5)),
)
CASES.append(
    Case(
        "pax-chain",
        lambda: good_tar(*[pax(comment=b"x")] * 20_000, tar_member(b"end.jpg", IMAGE)),
        taken=("end.jpg",),
    )
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
refuse("count-lies-low", "archive_inconsistent", lambda: raw_zip(_zip_neighbours(), count=200))
refuse("count-lies-high", "archive_inconsistent", lambda: raw_zip(_zip_neighbours(), count=256))
refuse("count-huge", "archive_too_large", lambda: raw_zip(_zip_neighbours(), count=10**9))
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


def _idx(count: int, rows: int, columns: int, body: bytes) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">3I", count, rows, columns) + body


refuse(
    "records-count-lies",
    "records_invalid",
    lambda: good_zip(ZipMember(b"train-images-idx3-ubyte", _idx(2**32 - 1, 4096, 4096, b"x"))),
)
refuse(
    "records-of-a-pixel",
    "archive_too_large",
    lambda: good_zip(ZipMember(b"train-images-idx3-ubyte", _idx(32 * MIB, 1, 1, bytes(32 * MIB)))),
)


def _records_bomb() -> bytes:
    """Files that alone may expand as they do, and together may not."""
    packed = gzip.compress(_idx(3, 4096, 4096, bytes(48 * MIB)), 1)
    names = [b"%d/train-images-idx3-ubyte.gz" % number for number in range(3)]
    return good_zip(*[ZipMember(name, packed) for name in names])


refuse("records-bomb-in-gzip", "archive_bomb", _records_bomb)
refuse(
    "records-label-lies",
    "records_invalid",
    lambda: good_zip(ZipMember(b"data_batch_1.bin", b"\xff" * 3073)),
)


def main(folder: Path) -> None:
    """Write every case to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (folder / case.name).write_bytes(case.make())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
