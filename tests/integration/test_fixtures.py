"""What every integration test stands on: migrated tables, two doors, a bucket, a tenant."""

from __future__ import annotations

from sqlalchemy import text

from app.db.session import Database
from app.settings import Settings
from app.storage.s3 import ObjectStore


def test_tenant_door_binds_its_tenant(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        role, tenant = session.execute(
            text("SELECT current_user, current_setting('app.tenant')")
        ).one()
    assert (role, tenant) == ("darkroom_api", tenant_id)


def test_system_door_sees_the_tenant(database: Database, tenant_id: str) -> None:
    with database.system() as session:
        found = session.scalar(text("SELECT id FROM tenants WHERE id = :id"), {"id": tenant_id})
    assert found == tenant_id


def test_bucket_is_there(objects: ObjectStore, settings: Settings, tenant_id: str) -> None:
    objects.put(settings.bucket, f"tenants/{tenant_id}/probe", b"x")
    assert objects.head(settings.bucket, f"tenants/{tenant_id}/probe").size == 1
