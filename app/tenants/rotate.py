"""Rotation: a key gets a successor, and both serve until the old one's overlap is over.

Keys that succeed each other are a *line*, named by its first key. At most two of a line are alive
at once, so that a rotation that is repeated by mistake, or by a program that runs wild, leaves no
heap of keys behind of which nobody knows which are still in use.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from app.errors import ConflictError, InvalidInputError
from app.tenants.keys import NewKey, add_key, check_expiry, key_not_found
from app.tenants.tables import ApiKey

DEFAULT_OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 30 * 24 * 3600

_ALIVE = and_(
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
)


def rotate_key(
    session: Session,
    tenant_id: str,
    key_id: str,
    *,
    pepper: str,
    overlap_seconds: int = DEFAULT_OVERLAP_SECONDS,
    expires_at: datetime | None = None,
) -> NewKey:
    """Make the key's successor, of the same name and scopes; the old key ends after the overlap.

    A successor lives as long as the newest key of its line was made to live, unless ``expires_at``
    says otherwise.

    Raises:
        NotFoundError: ``key_not_found``.
        ConflictError: ``key_not_alive``; ``key_rotating`` where another of its line is alive.
        InvalidInputError: ``overlap_invalid`` or ``expiry_invalid``.
    """
    if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
        raise InvalidInputError(
            f"overlap_seconds must be 0 to {MAX_OVERLAP_SECONDS}, which is 30 days",
            code="overlap_invalid",
        )
    until = check_expiry(expires_at)
    line_id = session.execute(
        select(func.coalesce(ApiKey.line_id, ApiKey.id)).where(*_is(tenant_id, key_id))
    ).scalar()
    if line_id is None:
        raise key_not_found(key_id)
    # Rotations of one line wait for each other here; what they added is seen by what follows.
    session.execute(select(ApiKey.id).where(*_is(tenant_id, line_id)).with_for_update())
    in_line = [ApiKey.tenant_id == tenant_id, or_(ApiKey.id == line_id, ApiKey.line_id == line_id)]
    alive = {row.id: row for row in session.scalars(select(ApiKey).where(*in_line, _ALIVE))}
    old = alive.pop(key_id, None)
    if old is None:
        raise ConflictError(
            f"key {key_id} was revoked or has expired; make a new one", code="key_not_alive"
        )
    if alive:
        other = next(iter(alive.values()))
        ends = f", which ends at {other.expires_at.isoformat()}" if other.expires_at else ""
        raise ConflictError(
            f"key {key_id} is in rotation: {other.id} of the same line is alive too{ends}; revoke "
            "one of them, or wait for the end of the older one",
            code="key_rotating",
        )
    newest = session.scalars(
        select(ApiKey).where(*in_line).order_by(ApiKey.id.desc()).limit(1)
    ).one()
    lives: datetime | ColumnElement[datetime] | None = until
    if until is None and newest.expires_at is not None:
        lives = func.now() + (newest.expires_at - newest.created_at)
    ends_at = func.now() + timedelta(seconds=overlap_seconds)
    # LEAST passes over NULL: a key that would end earlier by itself still does.
    old.expires_at = func.least(old.expires_at, ends_at)
    return add_key(
        session,
        tenant_id,
        name=old.name,
        scopes=list(old.scopes),
        pepper=pepper,
        expires_at=lives,
        line_id=line_id,
    )


def _is(tenant_id: str, key_id: str) -> list[ColumnElement[bool]]:
    return [ApiKey.tenant_id == tenant_id, ApiKey.id == key_id]
