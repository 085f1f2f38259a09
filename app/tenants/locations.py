"""From where a tenant's jobs may read: its own locations, else those of the settings."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.errors import ForbiddenError, ItemError, NotFoundError
from app.locations import Location, Locations
from app.tenants.tables import Tenant

_NOT_ALLOWED = "location_not_allowed"


def locations_of(session: Session, tenant_id: str, default: Locations) -> Locations:
    """The tenant's locations: its own ones, else the default.

    Raises:
        NotFoundError: ``tenant_not_found``.
    """
    row = session.execute(
        select(Tenant.input_locations).where(Tenant.id == tenant_id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no tenant {tenant_id[:60]!r}", code="tenant_not_found")
    return default if row.input_locations is None else Locations(tuple(row.input_locations))


def set_locations(session: Session, tenant_id: str, locations: Locations | None) -> None:
    """Give a tenant locations of its own; None goes back to the default. Needs a system session."""
    own = None if locations is None else list(locations.prefixes)
    session.execute(update(Tenant).where(Tenant.id == tenant_id).values(input_locations=own))


def not_allowed(refused: Sequence[tuple[str, Location]], allowed: Locations) -> ForbiddenError:
    """The refusal of an input: pointers, what lies there, and what may be read instead."""
    first = refused[0][1]
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    return ForbiddenError(
        f"the jobs of this tenant may not read {first}{more}; allowed is {allowed}. Put the images "
        "there or upload them, or have the operator allow it (`darkroom tenants locations`)",
        code=_NOT_ALLOWED,
        errors=[
            {"pointer": pointer, "detail": f"{location} may not be read"}
            for pointer, location in refused[:100]
        ],
        total=len(refused),
    )


def item_not_allowed(source: str) -> ItemError:
    """The error of a single item that lies where its tenant's jobs may not read."""
    return ItemError(
        f"the jobs of this tenant may not read {source}; GET /v1/quotas tells from where they may",
        code=_NOT_ALLOWED,
    )
