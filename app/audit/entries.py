"""The canonical form of an entry, of a link and of a head: what exactly is signed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.audit.keys import AuditKey

#: What the writer signs, in this order; ``details`` as the text that the row holds.
CONTENT = (
    "tenant_id",
    "id",
    "actor",
    "action",
    "outcome",
    "target",
    "request_id",
    "client_address",
    "details",
)
#: Stands before the first link.
NO_LINK = bytes(32)


def sign_entry(key: AuditKey, content: Mapping[str, Any]) -> bytes:
    """The writer's MAC, which makes an entry impossible to invent for who has only the database."""
    return key.sign("entry", *(content[name] for name in CONTENT))


def sign_link(
    key: AuditKey,
    before: bytes,
    seq: int,
    content: Mapping[str, Any],
    *,
    at: datetime,
    chained_at: datetime,
    mac: bytes,
) -> bytes:
    """The link of an entry at its place in the chain, ``before`` being the link before it."""
    times = (at.astimezone(UTC).isoformat(), chained_at.astimezone(UTC).isoformat())
    return key.sign(
        "link", before.hex(), seq, *times, mac.hex(), *(content[name] for name in CONTENT)
    )


def sign_head(key: AuditKey, tenant_id: str, seq: int, link: bytes) -> bytes:
    """The MAC of a chain's newest link."""
    return key.sign("head", tenant_id, seq, link.hex())


#: What the two that check and chain need of a row; ``details`` as the text that was signed.
COLUMNS = (
    "tenant_id, id, at, actor, action, outcome, target, request_id, client_address, "
    "details::text AS details, mac_key, mac, seq, chained_at, hash_key, hash"
)
