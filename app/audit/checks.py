"""Whether one row is as it was written, and whether it is a link of the chain at its place."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from app.audit.entries import sign_entry, sign_link
from app.audit.keys import AuditKeys

#: A row of the audit log, read with :data:`app.audit.entries.COLUMNS`.
Row = Mapping[str, Any]


def is_written(keys: AuditKeys, row: Row) -> bool:
    """Whether the row's content is as its writer signed it."""
    return hmac.compare_digest(row["mac"], sign_entry(keys.known[row["mac_key"]], row))


def is_link(keys: AuditKeys, row: Row, before: bytes, seq: int, link: bytes | None = None) -> bool:
    """Whether the row's link (or ``link``) is the right one behind ``before`` at this number."""
    key = keys.known.get(row["hash_key"])
    if key is None:
        return False
    expected = sign_link(
        key, before, seq, row, at=row["at"], chained_at=row["chained_at"], mac=row["mac"]
    )
    return hmac.compare_digest(row["hash"] if link is None else link, expected)
