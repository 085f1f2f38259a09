"""Quotas: what the tenant may have, and how much of it is used."""

from __future__ import annotations

from dataclasses import asdict

from flask import Response

from app.api.parts import parts, principal
from app.api.replies import send
from app.api.resource import Resource
from app.api.schemas.service import QuotaAnswer, QuotasAnswer
from app.jobs.usage import read_usage
from app.tenants.locations import locations_of
from app.tenants.scopes import Scope

resource = Resource("quotas", "Quotas", "What the tenant may have at most.")


@resource.route_as("get", "/quotas", answers={200: QuotasAnswer}, scope=Scope.JOBS_READ)
def get_quotas() -> Response:
    """Show the tenant's quotas, how much of each is used, and from where its jobs may read.

    What would pass a quota is refused with 429 and its name, or, of open items, waits. What lies
    outside of `input_locations` is refused with 403 `location_not_allowed`.
    """
    here, tenant_id = parts(), principal().tenant_id
    with here.db.tenant(tenant_id) as session:
        limits = asdict(here.admission.quotas(session, tenant_id))
        used = read_usage(session, tenant_id)
        locations = locations_of(session, tenant_id, here.settings.default_locations)
    return send(
        QuotasAnswer(
            **{name: QuotaAnswer(limit=limit, used=used[name]) for name, limit in limits.items()},
            input_locations=list(locations.prefixes),
        )
    )
