"""What an archive holds, seen from outside: members, their limits, and which are items."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from app.errors import InvalidInputError, ItemError

if TYPE_CHECKING:
    from app.settings import Settings

LABELS_FILE = "labels.csv"
MAX_NAME_BYTES = 1024
#: A small archive may expand as it likes: up to this it cannot hurt.
RATIO_FREE_BYTES = 64 * 1024 * 1024
#: Files that systems leave in archives and nobody means to send.
_DEBRIS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
# C0 and C1 controls, DEL, and surrogates, none of which a table or a terminal should meet.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DRIVE = re.compile("[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may be at most, before it is refused."""

    max_entries: int
    max_member_bytes: int
    max_total_bytes: int
    max_ratio: int

    @classmethod
    def from_settings(cls, settings: Settings) -> ArchiveLimits:
        """The limits of the settings; unpacked, an archive is bounded like an upload."""
        return cls(
            max_entries=settings.archive_max_entries,
            max_member_bytes=settings.max_image_bytes,
            max_total_bytes=settings.upload_max_bytes,
            max_ratio=settings.archive_max_ratio,
        )

    def check_entries(self, count: int) -> None:
        """Raises ``archive_too_large`` where there are too many members."""
        if count > self.max_entries:
            raise too_large(f"it has {count} members, at most {self.max_entries} are allowed")

    def check_expansion(self, packed_bytes: int, unpacked_bytes: int) -> None:
        """Raises ``archive_too_large`` or ``archive_bomb`` where it unpacks to too much."""
        if unpacked_bytes > self.max_total_bytes:
            raise too_large(f"it unpacks to more than {self.max_total_bytes} bytes")
        if unpacked_bytes > max(RATIO_FREE_BYTES, self.max_ratio * packed_bytes):
            raise InvalidInputError(
                f"the archive is refused: {packed_bytes} bytes unpack to {unpacked_bytes} or "
                f"more, over {self.max_ratio} times as much",
                code="archive_bomb",
            )


class Kind(enum.Enum):
    """What a member is to us."""

    #: A directory or debris: not counted, not mentioned.
    SKIPPED = enum.auto()
    #: A ``labels.csv``: read, but no item.
    LABELS = enum.auto()
    #: Anything else is meant to be an image; the judge decides.
    ITEM = enum.auto()


class Entry(NamedTuple):
    """A member as its header tells, its content not read yet.

    ``refusal`` is why it is not read at all; ``place`` is the reader's own.
    """

    kind: Kind
    name: str
    size: int
    refusal: str | None
    place: int


class Member(NamedTuple):
    """One item of an archive: its bytes, or why it has none.

    ``ordinal`` counts items from 0 in the order of the archive, so it stays the same
    however often the archive is read.
    """

    ordinal: int
    name: str
    size: int
    content: bytes | None
    error: ItemError | None

    def read(self) -> bytes:
        """The bytes of the member.

        Raises:
            ItemError: ``member_refused``, ``member_damaged`` or ``too_large``.
        """
        if self.content is None:
            raise self.error or ItemError(f"{self.name} was not read", code="member_refused")
        return self.content


def clean_name(name: str) -> str:
    """The name with ``/`` between folders and nothing unprintable, at most 1,024 bytes."""
    if "\\" in name:
        name = name.replace("\\", "/")
    if not name.isprintable():
        name = _UNPRINTABLE.sub("�", name)
    if len(name) * 4 > MAX_NAME_BYTES:
        name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    while name.startswith("./"):
        name = name[2:]
    return name


def classify(name: str) -> tuple[Kind, str | None]:
    """The kind of a member with this clean name, and why it is refused if it is.

    We never write to a path of a member's name, so a bad one harms nobody here. It is
    refused all the same: labels and exports carry it to people who may unpack by it.
    """
    folder, _, base = name.rpartition("/")
    if not base:
        return Kind.SKIPPED, None
    if base in _DEBRIS or base.startswith("._") or "__MACOSX" in folder.split("/"):
        return Kind.SKIPPED, None
    if base.lower() == LABELS_FILE:
        return Kind.LABELS, None
    if name[0] == "/" or _DRIVE.match(name):
        return Kind.ITEM, "its path is absolute"
    if ".." in name and ".." in name.split("/"):
        return Kind.ITEM, "its path climbs out of the archive"
    return Kind.ITEM, None


def broken(detail: str, offset: int, member: str | None = None, *, where: str = "") -> NoReturn:
    """Raise ``archive_broken`` with the byte offset and the member."""
    named = f" in member {clean_name(member)!r}" if member else ""
    raise InvalidInputError(
        f"the archive is broken at byte {offset}{where}{named}: {detail}", code="archive_broken"
    )


def too_large(detail: str) -> InvalidInputError:
    """The error of an archive that is more than we take."""
    return InvalidInputError(f"the archive is refused: {detail}", code="archive_too_large")
