"""What others call a tenant."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.tenants.tables import Tenant


def name_of_tenant(session: Session, tenant_id: str) -> str:
    """The name of the tenant that the session is bound to."""
    return session.scalars(select(Tenant.name).where(Tenant.id == tenant_id)).one()
