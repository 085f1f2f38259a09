"""What can be wrong with a chain, and how the first bad link tells which of it happened."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from app.audit.chain import Head
from app.audit.checks import Row, is_link
from app.audit.keys import AuditKeys

#: So many entries taken out at once, the rest numbered anew, are still told as removed.
_MOST_REMOVED = 1000


class FaultKind(enum.StrEnum):
    """What was done to the chain."""

    #: What an entry says, or when, is not what was written.
    ALTERED = "altered"
    #: Entries are gone from between others.
    REMOVED = "removed"
    #: An entry that Darkroom did not write.
    INSERTED = "inserted"
    #: A genuine entry stands at another's place.
    REORDERED = "reordered"
    #: Entries are gone from the end.
    TRUNCATED = "truncated"
    #: The chain is sound and not the one whose head was kept.
    REWRITTEN = "rewritten"
    #: Signed with a key that this process does not have.
    UNKNOWN_KEY = "unknown_key"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong with a chain."""

    kind: FaultKind
    #: The number in the chain; None for an entry that is not chained yet.
    seq: int | None
    entry_id: str | None
    detail: str


def name_fault(
    keys: AuditKeys,
    row: Row,
    before: bytes,
    following: Iterator[Row],
    *,
    written: bool,
    linked: bool,
    told: Head | None,
) -> Fault:
    """What happened at a row whose MAC is not its writer's (``written``) or whose link is wrong.

    ``following`` are the rows after it: what was moved fits where it came from.
    """
    seq, after = row["seq"], next(following, None)

    def fault(kind: FaultKind, detail: str) -> Fault:
        return Fault(kind, seq, row["id"], detail)

    if not written:
        if linked:
            return fault(
                FaultKind.INSERTED, "Darkroom did not write it: it was put in before it was chained"
            )
        pushed = after is not None and is_link(keys, after, before, seq)
        if pushed or (told is not None and seq > told.seq):
            return fault(FaultKind.INSERTED, "Darkroom did not write it: it was put into the chain")
        return fault(FaultKind.ALTERED, "it does not say what was written")
    other = after
    while other is not None:
        if is_link(keys, other, before, seq) or is_link(keys, other, before, seq, row["hash"]):
            return fault(
                FaultKind.REORDERED, f"it stands at the place of {other['id']}, now {other['seq']}"
            )
        other = next(following, None)
    if _closed_over(keys, row, after, told):
        return fault(FaultKind.REMOVED, "entries before it are gone, and the rest numbered anew")
    return fault(FaultKind.ALTERED, "its time or its link is not what was written")


def _closed_over(keys: AuditKeys, row: Row, after: Row | None, told: Head | None) -> bool:
    """Whether the row and the next one fit each other under higher numbers."""
    seq = row["seq"]
    if after is None:
        return told is not None and told.seq > seq and told.link == row["hash"]
    return any(
        is_link(keys, after, row["hash"], seq + 1 + gone) for gone in range(1, _MOST_REMOVED + 1)
    )
