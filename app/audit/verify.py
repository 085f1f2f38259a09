"""Walks a tenant's chain from its first link to its head, in constant memory."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.audit.chain import Head
from app.audit.checks import Row, is_link, is_written
from app.audit.entries import COLUMNS, NO_LINK, sign_head
from app.audit.faults import Fault, FaultKind, name_fault
from app.audit.keys import AuditKeys

#: Rows read at once.
_PAGE = 2000
#: An entry that waited longer for its link is counted: the dispatcher stood still, or somebody
#: took the chain off and had it made anew.
LATE = timedelta(hours=1)

_CHAINED = text(
    f"SELECT {COLUMNS} FROM audit_entries "  # noqa: S608
    "WHERE tenant_id = :tenant AND seq > :after ORDER BY seq LIMIT :page"
)
_UNCHAINED = text(
    f"SELECT {COLUMNS} FROM audit_entries "  # noqa: S608
    "WHERE tenant_id = :tenant AND seq IS NULL AND id > :after ORDER BY id LIMIT :page"
)
_HEAD = text("SELECT seq, hash, mac_key, mac FROM audit_heads WHERE tenant_id = :tenant")
_ONE_MOMENT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


@dataclass(slots=True)
class Verdict:
    """What a walk along one tenant's chain found."""

    tenant_id: str
    #: Links that are good, from the first one on.
    good: int = 0
    #: Entries that no dispatcher has chained yet; their writers' MACs are good.
    unchained: int = 0
    oldest_unchained_at: datetime | None = None
    #: Entries that were chained more than :data:`LATE` after they were written.
    late: int = 0
    head: Head | None = None
    fault: Fault | None = field(default=None)


def begin_verification(session: Session) -> None:
    """Let a system session see one moment only, so that nothing moves while it is walked."""
    session.execute(_ONE_MOMENT)


def verify_chain(
    session: Session, keys: AuditKeys, tenant_id: str, *, kept: Head | None = None
) -> Verdict:
    """Check every entry of the tenant; ``kept`` is a head of before, which must be in the chain.

    The first fault ends the walk.
    """
    verdict = Verdict(tenant_id)
    told, head_fault = _read_head(session, keys, tenant_id)
    for row in _walk(session, _CHAINED, tenant_id, "seq", 0):
        verdict.fault = _check_link(session, keys, verdict, row, told)
        if verdict.fault is None and kept is not None and row["seq"] == kept.seq:
            verdict.fault = _compare(row, kept)
        if verdict.fault is not None:
            return verdict
        verdict.good += 1
        verdict.head = Head(row["seq"], row["hash"])
        verdict.late += row["chained_at"] - row["at"] > LATE
    verdict.fault = head_fault or _check_end(verdict, told, kept)
    for row in _walk(session, _UNCHAINED, tenant_id, "id", ""):
        if verdict.fault is not None:
            break
        verdict.fault = _check_writer(keys, row)
        verdict.unchained += 1
        if verdict.oldest_unchained_at is None or row["at"] < verdict.oldest_unchained_at:
            verdict.oldest_unchained_at = row["at"]
    return verdict


def links_after(session: Session, tenant_id: str, seq: int) -> Iterator[Row]:
    """The tenant's chained rows with a greater number, in order."""
    return _walk(session, _CHAINED, tenant_id, "seq", seq)


def _walk(
    session: Session, statement: Any, tenant_id: str, column: str, after: Any
) -> Iterator[Row]:
    while True:
        words = {"tenant": tenant_id, "after": after, "page": _PAGE}
        page = [dict[str, Any](row) for row in session.execute(statement, words).mappings()]
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1][column]


def _check_link(
    session: Session, keys: AuditKeys, verdict: Verdict, row: Row, told: Head | None
) -> Fault | None:
    seq, before = verdict.good + 1, verdict.head.link if verdict.head else NO_LINK
    if row["seq"] != seq:
        gone = f"entry {seq}" if row["seq"] == seq + 1 else f"entries {seq} to {row['seq'] - 1}"
        return Fault(FaultKind.REMOVED, seq, None, f"{gone} of the chain are gone")
    for name in ("mac_key", "hash_key"):
        if row[name] not in keys.known:
            return _unknown_key(row, row[name])
    written = is_written(keys, row)
    linked = is_link(keys, row, before, seq)
    if written and linked:
        return None
    following = links_after(session, verdict.tenant_id, seq)
    return name_fault(keys, row, before, following, written=written, linked=linked, told=told)


def _check_writer(keys: AuditKeys, row: Row) -> Fault | None:
    if row["mac_key"] not in keys.known:
        return _unknown_key(row, row["mac_key"])
    if is_written(keys, row):
        return None
    return Fault(
        FaultKind.INSERTED,
        None,
        row["id"],
        "this entry, not chained yet, is not as Darkroom wrote it: it was put in, or altered",
    )


def _unknown_key(row: Row, key: str) -> Fault:
    return Fault(
        FaultKind.UNKNOWN_KEY,
        row["seq"],
        row["id"],
        f"it was signed under another pepper (audit key {key[:20]!r}): name that pepper in "
        "DARKROOM_OLD_KEY_PEPPERS. Where there never was another one, somebody forged it",
    )


def _read_head(
    session: Session, keys: AuditKeys, tenant_id: str
) -> tuple[Head | None, Fault | None]:
    row = session.execute(_HEAD, {"tenant": tenant_id}).one_or_none()
    if row is None:
        return None, None
    key = keys.known.get(row.mac_key)
    if key is None or not hmac.compare_digest(
        row.mac, sign_head(key, tenant_id, row.seq, row.hash)
    ):
        detail = "the chain's head is not as Darkroom wrote it"
        return None, Fault(FaultKind.ALTERED, row.seq, None, detail)
    return Head(row.seq, row.hash), None


def _check_end(verdict: Verdict, told: Head | None, kept: Head | None) -> Fault | None:
    """The chain is sound as far as it goes; whether it goes as far as it must."""
    end = verdict.head.seq if verdict.head else 0
    for head, whose in ((told, "the chain's head"), (kept, "the head that you kept")):
        if head is not None and head.seq > end:
            detail = f"{whose} is number {head.seq}, and the chain ends with number {end}"
            return Fault(FaultKind.TRUNCATED, end + 1, None, detail)
    if (told.seq if told else 0) < end:
        detail = f"the chain's head tells of {told.seq if told else 0} links, and there are {end}"
        return Fault(FaultKind.ALTERED, end, None, detail)
    return None


def _compare(row: Row, kept: Head) -> Fault | None:
    if hmac.compare_digest(row["hash"], kept.link):
        return None
    return Fault(
        FaultKind.REWRITTEN,
        row["seq"],
        row["id"],
        "the chain was made anew: its link here is not the one that you kept. What was changed "
        "lies at this number or before",
    )
