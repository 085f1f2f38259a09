"""Archives whose members have harmful names, or are no files."""

from __future__ import annotations

import bz2
import lzma
from functools import partial

from tests.security.archive_cases import (
    CASES,
    IMAGE,
    MIB,
    Case,
    fail,
    good_tar,
    good_zip,
    refuse,
)
from tests.security.raw_archives import (
    UTF8,
    ZipMember,
    pax,
    pax_record,
    raw_tar,
    tar_header,
    tar_member,
)

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
