"""Reads a tenant's audit log, newest first."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit.tables import AuditEntry, AuditHead
from app.db.page import fetch_page


def list_entries(
    session: Session,
    tenant_id: str,
    *,
    action: str | None = None,
    target: str | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[AuditEntry], bool]:
    """A page of the tenant's entries, newest first, and whether more follow."""
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
    for column, wanted in (
        (AuditEntry.action, action),
        (AuditEntry.target, target),
        (AuditEntry.actor, actor),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if since is not None:
        statement = statement.where(AuditEntry.at >= since)
    if until is not None:
        statement = statement.where(AuditEntry.at < until)
    return fetch_page(session, statement, AuditEntry.id, after=after, limit=limit)


def get_head(session: Session, tenant_id: str) -> AuditHead | None:
    """The newest link of the tenant's chain; None before the first."""
    return session.get(AuditHead, tenant_id)
