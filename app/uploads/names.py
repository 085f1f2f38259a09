"""Names of members: cleaned for people, and judged.

We never write to a path of a member's name, so a bad one harms nobody here. It is refused all
the same: labels, results and exports carry it to people who may unpack by it or read it in a
terminal. For the same reason equal names, and names that differ in case alone, are as many
items: nothing of ours is found by them.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

LABELS_FILE = "labels.csv"
MAX_NAME_BYTES = 1024
#: Files that systems leave in archives and nobody means to send; macOS ends its Icon in a CR,
#: which is cleaned before the comparison.
_DEBRIS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "Icon\ufffd"})
# C0 and C1 controls, DEL, line separators, what turns the direction of reading, and surrogates:
# none of which a table or a terminal should meet.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_DRIVE = re.compile("[A-Za-z]:")
#: Names that Windows keeps for devices, in any folder, with any extension.
_RESERVED = re.compile(r"(?:^|/)(?:con|prn|aux|nul|com[1-9]|lpt[1-9]) *(?:\.[^/]*)?(?:/|$)", re.I)
#: Nearly every name that people give: nothing in it to clean, to skip or to refuse, which one look
#: tells where the whole judgement takes nine, and an archive may list a million names.
_PLAIN_PART = r"(?!con|prn|aux|nul|com|lpt|labels|thumbs|desktop|icon)[a-z0-9][\w .()+-]*"
_PLAIN = re.compile(f"{_PLAIN_PART}(?:/{_PLAIN_PART})*", re.ASCII | re.IGNORECASE)
_LONGEST_PLAIN = 255


class Kind(enum.Enum):
    """What a member is to us."""

    #: A directory or debris: not counted, not mentioned.
    SKIPPED = enum.auto()
    #: A ``labels.csv``: read, but no item.
    LABELS = enum.auto()
    #: Anything else is meant to be an image; the judge decides.
    ITEM = enum.auto()


class Refusal(NamedTuple):
    """Why a member is not read: the code of its item, and a sentence.

    Codes: ``member_path_unsafe``, ``member_name_invalid``, ``member_link``,
    ``member_special``, ``member_sparse``, ``member_encrypted``,
    ``member_method_unsupported``.
    """

    code: str
    detail: str


_ABSOLUTE = Refusal("member_path_unsafe", "its path is absolute")
_CLIMBS = Refusal("member_path_unsafe", "its path climbs out of the archive")
_NOT_UTF8 = Refusal("member_name_invalid", "its name is not UTF-8")
_CONTROLS = Refusal(
    "member_name_invalid", "its name holds control characters or turns the direction of reading"
)
_DEVICE = Refusal("member_name_invalid", "its name is kept for a device by Windows")
#: What the decoder and the cleaning put where there was nothing to read.
_REPLACED = "\ufffd"


def clean_name(name: str) -> str:
    """The name with ``/`` between folders and nothing unprintable, at most 1,024 bytes."""
    if "\\" in name:
        name = name.replace("\\", "/")
    if not name.isprintable():
        name = _UNPRINTABLE.sub(_REPLACED, name)
    if len(name) * 4 > MAX_NAME_BYTES:
        name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    while name.startswith("./"):
        name = name[2:]
    return name


def judge_name(raw: bytes, text: str | None) -> tuple[Kind, str, Refusal | None]:
    """The kind of a member, its clean name, and why it is refused if its name says so.

    ``text`` is the decoded name; None where ``raw`` cannot be decoded.
    """
    if text is not None and len(text) <= _LONGEST_PLAIN and _PLAIN.fullmatch(text):
        return Kind.ITEM, text, None
    return _judge_closely(raw, text)


def _judge_closely(raw: bytes, text: str | None) -> tuple[Kind, str, Refusal | None]:
    name = clean_name(raw.decode(errors="replace") if text is None else text)
    folder, _, base = name.rpartition("/")
    if not base:
        return Kind.SKIPPED, name, None
    if base in _DEBRIS or base.startswith("._") or "__MACOSX" in folder.split("/"):
        return Kind.SKIPPED, name, None
    if base.lower() == LABELS_FILE:
        return Kind.LABELS, name, None
    return Kind.ITEM, name, _fault(raw, text, name)


def _fault(  # noqa: PLR0911  one line per fault reads best
    raw: bytes, text: str | None, name: str
) -> Refusal | None:
    if name[0] == "/" or _DRIVE.match(name):
        return _ABSOLUTE
    if ".." in name and ".." in name.split("/"):
        return _CLIMBS
    if len(raw) > MAX_NAME_BYTES:
        return Refusal(
            "member_name_invalid",
            f"its name has {len(raw)} bytes, at most {MAX_NAME_BYTES} are allowed",
        )
    if text is None:
        return _NOT_UTF8
    if not text.isprintable() and _UNPRINTABLE.search(text):
        return _CONTROLS
    if _RESERVED.search(name):
        return _DEVICE
    return None
