"""Workers: who does the work."""

from __future__ import annotations

from flask import Response

from app.api.parts import parts, principal
from app.api.replies import page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.service import WorkerAnswer, WorkerPage
from app.jobs.tables import WorkerRow
from app.jobs.workers import list_workers as page_workers
from app.tenants.scopes import Scope

resource = Resource("workers", "Workers", "The processes that do the work.")


@resource.route_as("get", "/workers", answers={200: WorkerPage}, scope=Scope.ADMIN)
def list_workers(query: PageQuery) -> Response:
    """List workers, newest first, gone ones too.

    Hosts and devices are the operator's to see: `darkroom workers`, where the service runs.
    """
    with parts().db.tenant(principal().tenant_id) as session:
        rows, has_more = page_workers(session, after=query.after, limit=query.limit)
    return send(WorkerPage(**page_fields(rows, has_more, _show)))


def _show(row: WorkerRow) -> WorkerAnswer:
    return WorkerAnswer(
        id=row.id,
        queue=row.queue,
        slots=row.slots,
        state="gone" if row.gone_at else "alive",
        started_at=row.started_at,
        last_seen_at=row.last_seen_at,
        gone_at=row.gone_at,
    )
