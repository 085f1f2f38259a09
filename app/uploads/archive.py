"""The door to archives: the content tells the format, the name is not asked."""

from __future__ import annotations

from typing import BinaryIO

from app.errors import InvalidInputError
from app.uploads.members import ArchiveLimits
from app.uploads.reader import Archive
from app.uploads.tar_archive import TarArchive, is_tar
from app.uploads.zip_archive import ZipArchive
from app.uploads.zip_end import find_end, prepended

#: What people send instead, by its first bytes.
_OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x07\x08": "one part of a split zip",
    b"\xff\xd8\xff": "a single image",
    b"\x89PNG": "a single image",
}


def open_archive(file: BinaryIO, limits: ArchiveLimits) -> Archive:
    """The archive in a seekable file, its frame checked as far as that is cheap.

    Raises:
        InvalidInputError: ``archive_unsupported``, ``archive_prepended``, or as
            :meth:`Archive.survey`.
        StorageError: the object store failed.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(512)
    if not head:
        raise InvalidInputError("the upload is empty", code="archive_unsupported")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ZipArchive(file, size, limits)
    if head[:2] == b"\x1f\x8b":
        return TarArchive(file, size, limits, gzipped=True)
    if is_tar(head):
        return TarArchive(file, size, limits, gzipped=False)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidInputError(
                f"the upload is {name}; send a zip, tar or tar.gz", code="archive_unsupported"
            )
    if find_end(file, size) is not None:
        raise prepended("other data")
    raise InvalidInputError(
        "the upload begins like no zip, tar or tar.gz", code="archive_unsupported"
    )
