"""Small archives and images for the tests, made on the spot."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

import pytest
from PIL import Image

from app.errors import InvalidInputError
from app.uploads.archive import open_archive
from app.uploads.members import ArchiveLimits, Member

MIB = 1024 * 1024
LIMITS = ArchiveLimits(
    max_entries=1000, max_member_bytes=MIB, max_total_bytes=1024 * MIB, max_ratio=100
)
#: Six members of different lengths.
FILES = {f"cat/{number}.jpg": bytes([number]) * (number * 700) for number in range(6)}


def image_bytes(
    kind: str = "JPEG", size: tuple[int, int] = (4, 3), mode: str = "RGB", colour: int = 0
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind)
    return out.getvalue()


def make_zip(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def make_tar(files: Mapping[str, bytes], mode: str = "w", style: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=style) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def read_all(archive: bytes, limits: ArchiveLimits = LIMITS, start: int = 0) -> list[Member]:
    return list(open_archive(io.BytesIO(archive), limits).members(start))


def outcomes(archive: bytes, limits: ArchiveLimits = LIMITS) -> dict[str, bytes | str]:
    """Name to content, or to the code of the error."""
    return {
        member.name: member.error.code if member.error else member.read()
        for member in read_all(archive, limits)
    }


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    return make_tar(files, "w:gz")


def stored_zip(files: Mapping[str, bytes]) -> bytes:
    return make_zip(files, zipfile.ZIP_STORED)


MAKERS = [make_zip, stored_zip, make_tar, tar_gz]
every_format = pytest.mark.parametrize("make", MAKERS)


def refusal(archive: bytes, limits: ArchiveLimits = LIMITS) -> InvalidInputError:
    """The error with which the whole archive is refused."""

    def read() -> None:
        opened = open_archive(io.BytesIO(archive), limits)
        opened.survey()
        list(opened.members())

    with pytest.raises(InvalidInputError) as caught:
        read()
    return caught.value
