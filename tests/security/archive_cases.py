"""How a hostile archive is described, and what stands around its bad members."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from tests.security.raw_archives import (
    ZipMember,
    raw_tar,
    raw_zip,
    tar_member,
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


def zip_neighbours() -> list[ZipMember]:
    """The good members of a zip."""
    return [ZipMember(name.encode(), IMAGE) for name in NEIGHBOURS]


@cache
def tar_neighbours() -> bytes:
    """The good members of a tar."""
    return b"".join(tar_member(name.encode(), IMAGE) for name in NEIGHBOURS)


def good_zip(*bad: ZipMember, wide: bool = False) -> bytes:
    """A zip with all neighbours, the bad members in their midst."""
    neighbours = zip_neighbours()
    return raw_zip([*neighbours[:100], *bad, *neighbours[100:]], wide=wide)


def good_tar(*bad: bytes) -> bytes:
    """A tar with all neighbours behind the bad members."""
    return raw_tar(*bad, tar_neighbours())


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
