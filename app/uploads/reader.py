"""Archives as streams of members, hostile until proven; the content tells the format.

Nothing is ever extracted by name. What harms the whole (a broken frame, overlapping members,
a lying count, a bomb) fails the archive; what is wrong with one member fails that item. A zip
frames each member by its directory, so damage inside one harms no other; in a tar.gz it does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from app.errors import InvalidInputError, ItemError
from app.uploads.members import ArchiveLimits, Entry, Member, too_large
from app.uploads.names import Kind
from app.uploads.record_names import RECORD_ENDS, are_records
from app.uploads.records import MAX_FILE_BYTES, RecordFiles

#: All labels.csv of an archive together; two million lines of 60 bytes fit.
_MAX_LABELS_BYTES = 128 * 1024 * 1024


@dataclass(slots=True)
class Survey:
    """What one pass over the headers tells before anything is packed.

    ``label_files`` are the names and contents of every labels.csv. ``common_folder`` is the
    deepest folder that holds all items; ``base_hashes`` has the hash of every item's base
    name.
    """

    item_count: int = 0
    #: Items that would be read and have no bytes.
    empty_count: int = 0
    label_files: list[tuple[str, bytes]] = field(default_factory=list)
    common_folder: str | None = None
    base_hashes: array[int] = field(default_factory=lambda: array("q"))

    def add_item(self, name: str) -> None:
        """Take the name of one item into account."""
        self.item_count += 1
        folder, _, base = name.rpartition("/")
        self.base_hashes.append(hash(base))
        if folder != self.common_folder:
            known = self.common_folder
            self.common_folder = folder if known is None else _shared(known, folder)


class Archive(ABC):
    """An open archive; each pass reads it again from its file, with bounded memory."""

    format: str

    def __init__(self, file: BinaryIO, size: int, limits: ArchiveLimits) -> None:
        self._file = file
        self._size = size
        self._limits = limits
        self._records = RecordFiles(limits)

    def survey(self) -> Survey:
        """Read all headers (of a tar.gz: everything) and the labels, and check the frame.

        Raises:
            InvalidInputError: ``archive_broken``, ``archive_truncated``,
                ``archive_inconsistent``, ``archive_too_large``, ``archive_bomb``,
                ``archive_overlapping``, ``archive_encrypted``, ``labels_invalid``,
                ``records_invalid``.
            StorageError: the object store failed.
        """
        survey = Survey()
        self._records = RecordFiles(self._limits)
        left = _MAX_LABELS_BYTES
        for entry in self._entries():
            kind, name, size, refusal, _ = entry
            if kind is Kind.ITEM:
                if _holds_records(name, size):
                    self._records.add(name, self._record_bytes(entry))
                    continue
                if not size and refusal is None:
                    survey.empty_count += 1
                survey.add_item(name)
            elif kind is Kind.LABELS:
                if refusal is not None:
                    raise _no_labels(f"{name} is refused: {refusal.detail}")
                left -= size
                if left < 0:
                    raise too_large(f"its labels have over {_MAX_LABELS_BYTES} bytes")
                survey.label_files.append((name, self._labels(entry)))
        survey.item_count += self._records.finish()
        self._limits.check_entries(survey.item_count)
        return survey

    def members(self, start: int = 0) -> Iterator[Member]:
        """The items from ordinal ``start`` on, in the order of the archive.

        Call :meth:`survey` first: it knows the files of records.

        Raises:
            InvalidInputError: as :meth:`survey`, and where a member's own header disagrees.
            StorageError: the object store failed.
        """
        ordinal = 0
        largest = self._limits.max_member_bytes
        for entry in self._entries():
            kind, name, size, refusal, _ = entry
            if kind is not Kind.ITEM:
                continue
            if _holds_records(name, size):
                count = self._records.count_of(name)
                if count and start < ordinal + count:
                    content = self._record_bytes(entry)
                    skipped = max(start - ordinal, 0)
                    records = self._records.read(name, content, skipped)
                    for at, record in enumerate(records, ordinal + skipped):
                        own = (record.label, record.split)
                        length = len(record.content)
                        yield Member(at, record.name, length, record.content, None, own)
                ordinal += count
                continue
            if ordinal >= start:
                if refusal is not None:
                    error = ItemError(f"{name} is refused: {refusal.detail}", code=refusal.code)
                    yield Member(ordinal, name, size, None, error)
                elif size > largest:
                    error = ItemError(
                        f"{name} has {size} bytes, at most {largest} are allowed",
                        code="too_large",
                    )
                    yield Member(ordinal, name, size, None, error)
                else:
                    try:
                        content = self._content(entry)
                    except ItemError as error:
                        yield Member(ordinal, name, size, None, error)
                    else:
                        yield Member(ordinal, name, size, content, None)
            ordinal += 1

    def _labels(self, entry: Entry) -> bytes:
        try:
            return self._content(entry)
        except ItemError as error:
            raise _no_labels(error.detail) from error

    def _record_bytes(self, entry: Entry) -> bytes:
        """The content of a file of records, which is refused as the whole or not at all."""
        _, name, size, refusal, _ = entry
        if refusal is not None:
            raise InvalidInputError(f"{name} is refused: {refusal.detail}", code="records_invalid")
        if size > MAX_FILE_BYTES:
            raise too_large(f"{name} has more than {MAX_FILE_BYTES} bytes")
        try:
            return self._content(entry)
        except ItemError as error:
            raise InvalidInputError(error.detail, code="records_invalid") from error

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """Every member from the first on; the content of the last one yielded can be read."""

    @abstractmethod
    def _content(self, entry: Entry) -> bytes:
        """The content of the entry that :meth:`_entries` yielded last.

        Raises:
            ItemError: ``member_damaged``, where the damage ends with this member.
            InvalidInputError: where it does not.
        """


def _holds_records(name: str, size: int) -> bool:
    return name.endswith(RECORD_ENDS) and are_records(name.rpartition("/")[2], size)


def _no_labels(detail: str) -> InvalidInputError:
    """The error of labels that cannot be read: without them one would train on nothing."""
    return InvalidInputError(detail, code="labels_invalid")


def _shared(one: str, other: str) -> str:
    """The deepest folder that holds both."""
    shared: list[str] = []
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        shared.append(left)
    return "/".join(shared)
