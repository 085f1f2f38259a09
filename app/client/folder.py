"""A folder as a tar stream of known length, packed while it is sent; nothing is written to disk."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from app.client.errors import LOCAL_FILE, ApiError

_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Member:
    path: Path
    header: bytes
    size: int

    @property
    def padding(self) -> int:
        return -self.size % _BLOCK


class FolderTar:
    """The files below a folder, in sorted order, with names relative to it.

    Hidden files and folders are left out. ``include`` and ``exclude`` are globs over the
    relative name (``*`` crosses slashes); a name is in when it matches any include, or there
    is none, and no exclude.
    """

    def __init__(
        self, folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._members = [
            _member(folder, name)
            for name in _names(folder)
            if (not include or any(fnmatchcase(name, glob) for glob in include))
            and not any(fnmatchcase(name, glob) for glob in exclude)
        ]
        if not self._members:
            raise ApiError(f"there is no file to send in {folder}", code=LOCAL_FILE)

    @property
    def size_bytes(self) -> int:
        """Length of the stream: headers, contents, padding and the two closing blocks."""
        body = sum(len(each.header) + each.size + each.padding for each in self._members)
        return body + 2 * _BLOCK

    def chunks(self) -> Iterator[bytes]:
        """The stream, from its beginning.

        Raises:
            ApiError: a file cannot be read, or changed its length since the folder was listed.
        """
        for member in self._members:
            yield member.header
            left = member.size
            try:
                with member.path.open("rb") as source:
                    while left:
                        chunk = source.read(min(left, _READ_BYTES))
                        if not chunk:
                            break
                        left -= len(chunk)
                        yield chunk
            except OSError as error:
                raise _unreadable(member.path, error) from error
            if left:
                raise ApiError(f"{member.path} became shorter while sending", code=LOCAL_FILE)
            yield bytes(member.padding)
        yield bytes(2 * _BLOCK)


def _names(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(parent).relative_to(folder)
        for name in sorted(files):
            if not name.startswith("."):
                yield (inner / name).as_posix()


def _member(folder: Path, name: str) -> _Member:
    path = folder / name
    info = tarfile.TarInfo(name)
    try:
        info.size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    return _Member(path, info.tobuf(tarfile.PAX_FORMAT), info.size)


def _unreadable(path: Path, error: OSError) -> ApiError:
    return ApiError(f"{path} cannot be read: {error.strerror}", code=LOCAL_FILE)
