"""How much one tenant may have: the defaults from the settings, and a tenant's own limits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.errors import NotFoundError, TooManyError
from app.settings import Settings
from app.tenants.tables import Tenant


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a tenant may have at most."""

    #: Jobs that have not ended.
    max_open_jobs: int
    #: Items of such jobs that have not ended.
    max_open_items: int
    #: Bytes of uploads, shards, weights and artifacts.
    max_stored_bytes: int
    #: Jobs submitted within 60 seconds.
    max_submissions_per_minute: int
    #: Minutes that workers trained for it within 30 days, failed attempts included.
    max_training_minutes: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Quotas:
        """The limits of a tenant that has none of its own."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


def quotas_of(session: Session, tenant_id: str, defaults: Quotas) -> Quotas:
    """The tenant's limits: its own ones, else the defaults.

    Raises:
        NotFoundError: ``tenant_not_found``.
    """
    columns = [getattr(Tenant, field.name) for field in fields(Quotas)]
    own = session.execute(select(*columns).where(Tenant.id == tenant_id)).one_or_none()
    if own is None:
        raise NotFoundError(f"there is no tenant {tenant_id[:60]!r}", code="tenant_not_found")
    return replace(defaults, **{k: v for k, v in own._mapping.items() if v is not None})


def set_quotas(session: Session, name: str, **limits: int | None) -> None:
    """Give a tenant limits of its own; None goes back to the default. Needs a system session.

    Raises:
        NotFoundError: ``tenant_not_found``.
    """
    changed = session.execute(
        update(Tenant).where(Tenant.name == name).values(**limits).returning(Tenant.id)
    ).first()
    if changed is None:
        raise NotFoundError(f"there is no tenant {name[:60]!r}", code="tenant_not_found")


def too_many(
    code: str, quota: str, limit: int, present: str, advice: str, *, retry_after_seconds: int
) -> TooManyError:
    """The refusal of what would pass a quota: which one, where the tenant stands, what to do."""
    return TooManyError(
        f"this tenant has {present}, and its quota {quota} is {limit}; {advice}",
        code=code,
        errors=[{"pointer": quota, "detail": f"{present}; at most {limit}"}],
        retry_after_seconds=retry_after_seconds,
    )
