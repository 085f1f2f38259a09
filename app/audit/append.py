"""Writes entries of the audit log, each in the transaction of the act that it tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.audit.actions import OPERATOR, Action, Outcome
from app.audit.entries import sign_entry
from app.audit.keys import AuditKey
from app.ids import AUDIT_ENTRY, new_id

#: An entry stays for ever and is signed, read and checked whole, so nobody may make it long.
DETAILS_MAX_CHARACTERS = 4000

_INSERT = """
    INSERT INTO audit_entries
        (tenant_id, id, actor, action, outcome, target, request_id, client_address, details,
         mac_key, mac)
    VALUES
        (%(tenant_id)s, %(id)s, %(actor)s, %(action)s, %(outcome)s, %(target)s, %(request_id)s,
         %(client_address)s, %(details)s::json, %(mac_key)s, %(mac)s)
"""


def append_entry(
    session: Session,
    key: AuditKey,
    *,
    tenant_id: str,
    action: Action,
    actor: str = OPERATOR,
    outcome: Outcome = Outcome.DONE,
    target: str | None = None,
    request_id: str | None = None,
    client_address: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Add an entry to what the session commits; returns its id.

    ``details`` are plain JSON and hold no secret. Where they are longer than
    :data:`DETAILS_MAX_CHARACTERS`, long values are cut and say how long they were.
    """
    content: dict[str, Any] = {
        "tenant_id": tenant_id,
        "id": new_id(AUDIT_ENTRY),
        "actor": actor,
        "action": action.value,
        "outcome": outcome.value,
        "target": target,
        "request_id": request_id,
        "client_address": client_address,
        "details": _as_text(details or {}),
    }
    # Past SQLAlchemy's compiler: every submission of a job pays for this.
    session.connection().exec_driver_sql(
        _INSERT, {**content, "mac_key": key.id, "mac": sign_entry(key, content)}
    )
    return str(content["id"])


def _as_text(details: Mapping[str, Any]) -> str:
    text = _dump(dict(details))
    if len(text) <= DETAILS_MAX_CHARACTERS:
        return text
    # A share for each value, less what name and punctuation take.
    share = DETAILS_MAX_CHARACTERS // len(details)
    return _dump(
        {name: _cut(value, share - len(_dump(name)) - 4) for name, value in details.items()}
    )


def _cut(value: Any, most: int) -> Any:
    """The value, or the beginning of its text where that takes more characters of JSON."""
    if len(_dump(value)) <= most:
        return value
    text = value if isinstance(value, str) else _dump(value)
    mark = f"… ({len(text):,} characters)"
    kept = text[:most]
    # Characters beyond ASCII take six or twelve of JSON.
    while kept and len(_dump(kept + mark)) > most:
        kept = kept[: len(kept) * 9 // 10]
    return kept + mark


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
