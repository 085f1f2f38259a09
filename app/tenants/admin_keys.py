"""Tenants and their admin keys made straight in the database, by whoever runs the service.

Over the API only an admin key makes keys, so a tenant's first one comes from here, and so does
the next one where the last was lost. The audit log tells of each, with the operator as actor.
"""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.audit.actions import Action
from app.audit.append import append_entry
from app.audit.keys import AuditKey
from app.db.session import Database
from app.tenants.keys import NewKey, create_key, create_tenant
from app.tenants.scopes import Scope
from app.tenants.tables import ApiKey, Tenant

FIRST_TENANT = "default"
_FIRST_KEY = "first"


def open_tenant(session: Session, name: str, pepper: str) -> NewKey:
    """Make a tenant and its first admin key; needs a system session.

    Raises:
        InvalidInputError: ``tenant_name_invalid``.
        ConflictError: ``tenant_exists``.
        SettingsError: the pepper is missing or too short.
    """
    tenant = create_tenant(session, name)
    append_entry(
        session,
        AuditKey.derive(pepper),
        tenant_id=tenant.id,
        action=Action.TENANT_CREATED,
        target=name,
    )
    return create_admin_key(session, tenant.id, name=_FIRST_KEY, pepper=pepper)


def create_admin_key(session: Session, tenant_id: str, *, name: str, pepper: str) -> NewKey:
    """Make a key that may do everything for a tenant; needs a system session.

    Raises:
        SettingsError: the pepper is missing or too short.
    """
    key = create_key(session, tenant_id, name=name, scopes=[Scope.ADMIN], pepper=pepper)
    append_entry(
        session,
        AuditKey.derive(pepper),
        tenant_id=tenant_id,
        action=Action.KEY_CREATED,
        target=key.id,
        details={"name": key.row.name, "scopes": key.row.scopes},
    )
    return key


def ensure_first_key(db: Database, pepper: str) -> str | None:
    """The text of a first admin key of the tenant ``default``, or None if any key exists.

    Several nodes may start at once; one of them makes the key.
    """
    with db.system() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('darkroom.first_key'))"))
        if session.scalar(select(ApiKey.id).limit(1)) is not None:
            return None
        tenant_id = session.scalar(select(Tenant.id).where(Tenant.name == FIRST_TENANT))
        key = (
            open_tenant(session, FIRST_TENANT, pepper)
            if tenant_id is None
            else create_admin_key(session, tenant_id, name=_FIRST_KEY, pepper=pepper)
        )
        return key.text
