"""What an archive holds, seen from outside: members, and how much of all may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from app.errors import InvalidInputError, ItemError
from app.uploads.names import Kind, Refusal, clean_name

if TYPE_CHECKING:
    from app.settings import Settings

#: A small archive may expand as it likes: up to this it cannot hurt.
RATIO_FREE_BYTES = 64 * 1024 * 1024
#: A member as its header tells, its content not read yet: kind, name, size in bytes, why it is not
#: read at all, and a place that is the reader's own. A plain tuple: of an archive that lists a
#: million, the making of objects would be a tenth of the work.
Entry = tuple[Kind, str, int, Refusal | None, int]
_WORDS = {"archive_truncated": "cut short", "archive_inconsistent": "inconsistent"}


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may be at most, before it is refused."""

    max_entries: int
    max_member_bytes: int
    max_total_bytes: int
    max_ratio: int
    max_directory_bytes: int = 256 * 1024 * 1024

    @classmethod
    def from_settings(cls, settings: Settings) -> ArchiveLimits:
        """The limits of the settings; unpacked, an archive is bounded like an upload."""
        return cls(
            max_entries=settings.archive_max_entries,
            max_member_bytes=settings.max_image_bytes,
            max_total_bytes=settings.upload_max_bytes,
            max_ratio=settings.archive_max_ratio,
            max_directory_bytes=settings.archive_max_directory_bytes,
        )

    def check_entries(self, count: int) -> None:
        """Raises ``archive_too_large`` where there are too many members."""
        if count > self.max_entries:
            raise too_large(f"it has {count} members, at most {self.max_entries} are allowed")

    def check_directory(self, size: int) -> None:
        """Raises ``archive_too_large`` where the directory of a zip is too long to keep."""
        if size > self.max_directory_bytes:
            raise too_large(
                f"its directory has {size} bytes, at most {self.max_directory_bytes} are allowed"
            )

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
    #: Label and split where the member brings them along.
    own: tuple[str | None, str | None] | None = None

    def read(self) -> bytes:
        """The bytes of the member.

        Raises:
            ItemError: as :class:`app.uploads.names.Refusal`, ``member_damaged`` or
                ``too_large``.
        """
        if self.content is None:
            raise self.error or AssertionError("a member has its content or an error")
        return self.content


def broken(
    detail: str,
    offset: int,
    member: str | None = None,
    *,
    where: str = "",
    code: str = "archive_broken",
) -> NoReturn:
    """Raise ``code`` with the byte offset and the member.

    ``archive_broken``: what stands there means nothing. ``archive_truncated``: the end is
    missing. ``archive_inconsistent``: two places contradict each other.
    """
    named = f" in member {clean_name(member)!r}" if member else ""
    word = _WORDS.get(code, "broken")
    raise InvalidInputError(
        f"the archive is {word} at byte {offset}{where}{named}: {detail}", code=code
    )


def inconsistent(detail: str, offset: int, member: str | None = None) -> NoReturn:
    """Raise ``archive_inconsistent``: readers would not agree on what the archive holds."""
    broken(detail, offset, member, code="archive_inconsistent")


def too_large(detail: str) -> InvalidInputError:
    """The error of an archive that is more than we take."""
    return InvalidInputError(f"the archive is refused: {detail}", code="archive_too_large")
