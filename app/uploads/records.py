"""Data sets that are files of records: CIFAR-10 and CIFAR-100 in binary form, IDX as of MNIST.

Each record becomes an image of its own, a PNG, with its label and its split. The files are known
by their names and then read strictly: sizes, counts and labels must fit to the last byte. The
formats are those of https://www.cs.toronto.edu/~kriz/cifar.html and of the MNIST database.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from app.errors import InvalidInputError
from app.uploads.gunzip import Gunzip, GzipError
from app.uploads.members import ArchiveLimits, too_large
from app.uploads.record_names import CIFAR_10, CIFAR_100, CIFAR_BYTES, IDX, NAME_FILES

#: Most bytes of one file of records, unpacked. CIFAR-100 has 147 MiB. One takes as much memory, and
#: three times as much where it lies packed and does not shrink.
MAX_FILE_BYTES = 160 * 1024 * 1024
#: Files of records in one archive, their labels and names of classes among them.
_MAX_FILES = 1000
_MAX_SIDE_PX = 4096
#: Side of CIFAR's images.
_CIFAR_PX = 32
_IDX_LABELS, _IDX_IMAGES = b"\x00\x00\x08\x01", b"\x00\x00\x08\x03"
_IDX_HEADER_BYTES = {_IDX_LABELS: 8, _IDX_IMAGES: 16}
_MAX_LABEL_CHARS = 200
#: Of a file that names the classes: CIFAR-100's has 1 KiB. Made of short lines it would take thirty
#: times its size in memory.
_MAX_NAMES_BYTES = 128 * 1024


class Record(NamedTuple):
    """One image of a file of records."""

    name: str
    #: A PNG.
    content: bytes
    label: str | None
    split: str


@dataclass(frozen=True, slots=True)
class _File:
    """A file of images whose sizes and labels have been checked."""

    name: str
    split: str
    count: int
    #: Labels of one byte before each image; none where the file is IDX.
    label_bytes: int
    rows: int = _CIFAR_PX
    columns: int = _CIFAR_PX


class RecordFiles:
    """The files of records in one archive; what is kept of each are its sizes and labels."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._files: dict[str, _File] = {}
        #: By the folder and the number of classes.
        self._names: dict[tuple[str, int], list[str]] = {}
        #: Labels of IDX files, by the folder and the split.
        self._labels: dict[tuple[str, str], bytes] = {}
        self._added = self._image_count = self._label_count = 0
        self._packed_bytes = self._unpacked_bytes = 0

    def add(self, name: str, content: bytes) -> None:
        """Read one file whole and check it.

        Raises:
            InvalidInputError: ``records_invalid``, ``archive_too_large``, ``archive_bomb``.
        """
        self._added += 1
        if self._added > _MAX_FILES:
            raise too_large(f"it has more than {_MAX_FILES} files of records")
        folder, _, base = name.rpartition("/")
        if base in NAME_FILES:
            self._names[folder, NAME_FILES[base]] = _class_names(name, content, NAME_FILES[base])
        elif match := IDX.fullmatch(base):
            split = "train" if match["train"] else "test"
            unpacked = self._unpack(name, content)
            self._packed_bytes += len(content)
            self._unpacked_bytes += len(unpacked)
            self._limits.check_expansion(self._packed_bytes, self._unpacked_bytes)
            add = self._add_labels if match["what"] == "labels" else self._add_pictures
            add(name, unpacked, split)
        elif match := CIFAR_10.fullmatch(base):
            self._add_cifar(name, content, "train" if match["train"] else "test", (10,))
        elif match := CIFAR_100.fullmatch(base):
            self._add_cifar(name, content, "train" if match["train"] else "test", (20, 100))

    def _add_labels(self, name: str, content: bytes, split: str) -> None:
        count = _idx_sizes(name, content, _IDX_LABELS)[0]
        _require_size(name, content, _IDX_HEADER_BYTES[_IDX_LABELS] + count)
        self._label_count += count
        self._limits.check_entries(self._label_count)
        labels = content[_IDX_HEADER_BYTES[_IDX_LABELS] :]
        if self._labels.setdefault((_folder(name), split), labels) != labels:
            _refuse(name, f"its folder has two files of labels for {split}")

    def _add_pictures(self, name: str, content: bytes, split: str) -> None:
        count, rows, columns = _idx_sizes(name, content, _IDX_IMAGES)
        if not count:
            _refuse(name, "it has no images")
        if not (1 <= rows <= _MAX_SIDE_PX and 1 <= columns <= _MAX_SIDE_PX):
            _refuse(name, f"its images have {columns}×{rows} pixels")
        _require_size(name, content, _IDX_HEADER_BYTES[_IDX_IMAGES] + count * rows * columns)
        self._keep(_File(name, split, count, 0, rows, columns))

    def _add_cifar(self, name: str, content: bytes, split: str, classes: tuple[int, ...]) -> None:
        """``classes``: how many each label of a record tells apart."""
        record_bytes = len(classes) + CIFAR_BYTES
        count, rest = divmod(len(content), record_bytes)
        if rest or not count:
            _refuse(name, f"{len(content)} bytes are no records of {record_bytes} bytes each")
        for place, limit in enumerate(classes):
            largest = max(content[place::record_bytes])
            if largest >= limit:
                _refuse(name, f"it has the label {largest}, and labels go to {limit - 1}")
        self._keep(_File(name, split, count, len(classes)))

    def finish(self) -> int:
        """Check what must fit together, and count the images.

        Raises:
            InvalidInputError: ``records_invalid``: images and labels differ in number.
        """
        for file in self._files.values():
            labels = self._labels.get((_folder(file.name), file.split))
            if not file.label_bytes and labels is not None and len(labels) != file.count:
                _refuse(
                    file.name, f"it has {file.count} images, and there are {len(labels)} labels"
                )
        return self._image_count

    def count_of(self, name: str) -> int:
        """Images in this file; none where it only says what others show."""
        file = self._files.get(name)
        return file.count if file else 0

    def read(self, name: str, content: bytes, start: int) -> Iterator[Record]:
        """The images of a file that was checked, from the one at ``start`` on."""
        file = self._files[name]
        folder = _folder(name)
        if not file.label_bytes:
            content = self._unpack(name, content)
            labels = self._labels.get((folder, file.split))
            size = file.rows * file.columns
            for index in range(start, file.count):
                at = _IDX_HEADER_BYTES[_IDX_IMAGES] + index * size
                label = str(labels[index]) if labels is not None else None
                yield self._record(file, index, [content[at : at + size]], label)
            return
        names = self._names.get((folder, 10 if file.label_bytes == 1 else 100))
        for index in range(start, file.count):
            at = index * (file.label_bytes + CIFAR_BYTES) + file.label_bytes
            # The finer of two labels stands last.
            number = content[at - 1]
            label = names[number] if names is not None else str(number)
            planes = [content[at + shift : at + shift + 1024] for shift in (0, 1024, 2048)]
            yield self._record(file, index, planes, label)

    def _record(self, file: _File, index: int, planes: list[bytes], label: str | None) -> Record:
        # Only where there is one: the judge of all other archives uses no image library.
        from PIL import Image

        size = (file.columns, file.rows)
        bands = [Image.frombytes("L", size, plane) for plane in planes]
        out = io.BytesIO()
        image = bands[0] if len(bands) == 1 else Image.merge("RGB", bands)
        image.save(out, "PNG", compress_level=1)
        return Record(f"{file.name}/{index:07d}.png", out.getvalue(), label, file.split)

    def _keep(self, file: _File) -> None:
        if file.name in self._files:
            _refuse(file.name, "the archive has two files of this name")
        self._files[file.name] = file
        self._image_count += file.count
        self._limits.check_entries(self._image_count)

    def _unpack(self, name: str, content: bytes) -> bytes:
        """What is in a .gz, within the bounds of one file and of all together."""
        if not name.endswith(".gz"):
            return content
        try:
            unpacked = Gunzip(io.BytesIO(content)).read(MAX_FILE_BYTES + 1)
        except GzipError as error:
            _refuse(name, str(error))
        if len(unpacked) > MAX_FILE_BYTES:
            raise too_large(f"{name[:200]} unpacks to more than {MAX_FILE_BYTES} bytes")
        return unpacked


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _idx_sizes(name: str, content: bytes, magic: bytes) -> list[int]:
    """The sizes that the header of an IDX file of bytes tells: of images also rows and columns."""
    end = _IDX_HEADER_BYTES[magic]
    if len(content) < end or content[:4] != magic:
        _refuse(name, f"it does not begin like IDX: {magic.hex()} and {(end - 4) // 4} sizes")
    return [int.from_bytes(content[at : at + 4], "big") for at in range(4, end, 4)]


def _require_size(name: str, content: bytes, expected: int) -> None:
    if len(content) != expected:
        _refuse(name, f"its header asks for {expected} bytes, and it has {len(content)}")


def _class_names(name: str, content: bytes, count: int) -> list[str]:
    if len(content) > _MAX_NAMES_BYTES:
        _refuse(name, f"it has {len(content)} bytes, at most {_MAX_NAMES_BYTES} are names")
    try:
        names = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        _refuse(name, "it is no UTF-8")
    if len(names) != count or len(set(names)) != count:
        _refuse(name, f"it has {len(set(names))} different names of classes, not {count}")
    if not all(len(one) <= _MAX_LABEL_CHARS and one.isprintable() for one in names):
        _refuse(name, f"a class has at most {_MAX_LABEL_CHARS} characters, all printable")
    return names


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidInputError(f"{name[:200]} cannot be used: {why}", code="records_invalid")
