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

    ``details`` are small, plain JSON and hold no secret.
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
        "details": json.dumps(dict(details or {}), sort_keys=True, separators=(",", ":")),
    }
    # Past SQLAlchemy's compiler: every submission of a job pays for this.
    session.connection().exec_driver_sql(
        _INSERT, {**content, "mac_key": key.id, "mac": sign_entry(key, content)}
    )
    return str(content["id"])
