"""Reads the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from app.client.transport import Transport
from app.client.values import AuditEntry


class Audit:
    """``darkroom.audit``; needs the scope ``admin``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self,
        *,
        action: str | None = None,
        target: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[AuditEntry]:
        """Every entry that fits, newest first."""
        asked = {
            "action": action,
            "target": target,
            "actor": actor,
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
        }
        return map(AuditEntry.from_dict, self._transport.pages("/v1/audit", asked))

    def head(self) -> tuple[int, str] | None:
        """The newest link of the chain, as number and hash, to be kept elsewhere."""
        head = self._transport.call("GET", "/v1/audit", query={"limit": 1}).json()["head"]
        return (head["seq"], head["hash"]) if head else None
