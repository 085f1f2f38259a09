"""The audit log, for the tenant whose acts it tells."""

from __future__ import annotations

from flask import Response

from app.api.parts import parts, principal
from app.api.replies import page_fields, send
from app.api.resource import Resource
from app.api.schemas.audit import AuditAnswer, AuditHeadAnswer, AuditPage, AuditQuery
from app.audit.read import get_head, list_entries
from app.audit.tables import AuditEntry
from app.tenants.scopes import Scope

resource = Resource("audit", "Audit", "Who did what, when, and from where.")


@resource.route_as("get", "/audit", answers={200: AuditPage}, scope=Scope.ADMIN)
def list_audit(query: AuditQuery) -> Response:
    """Read the audit log, newest first.

    It tells of what changed something, took data out, or was refused to a known key; plain reads
    are in the service's log lines. `head` is the newest link of its chain: one that you keep
    lets the operator prove later that nothing before it was changed
    (`darkroom audit verify --head`).
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = list_entries(session, tenant_id, **query.model_dump())
        head = get_head(session, tenant_id)
    newest = AuditHeadAnswer(seq=head.seq, hash=head.hash.hex()) if head else None
    return send(AuditPage(**page_fields(rows, has_more, _show), head=newest))


def _show(row: AuditEntry) -> AuditAnswer:
    fields = {name: getattr(row, name) for name in AuditAnswer.model_fields if name != "hash"}
    return AuditAnswer(**fields, hash=row.hash.hex() if row.hash else None)
