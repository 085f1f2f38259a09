"""API keys: made once, shown once, kept only as a keyed hash.

A key reads ``dk_<id>_<secret>_<checksum>``: 26 characters that find its row, 256 random bits
in base 32, and a CRC-32 over what stands before. The checksum keeps typing errors and random
strings away from the database, and lets secret scanners be sure of what they found. It
protects nothing: the secret does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import utc_now
from app.db.page import fetch_page
from app.db.session import Database
from app.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    UnauthorizedError,
)
from app.ids import KEY, TENANT, new_id
from app.names import check_name
from app.tenants.scopes import Principal, Scope
from app.tenants.tables import ApiKey, Tenant

_KEY_TEXT = re.compile(r"dk_([0-9a-hjkmnp-tv-z]{26})_([a-z2-7]{52})_([0-9a-f]{8})")
_PEPPER_MIN_CHARACTERS = 32

_FIND = """
    SELECT id, tenant_id, secret_hash, scopes,
           extract(epoch FROM expires_at - now())::float8 AS seconds_left,
           revoked_at IS NOT NULL AS revoked,
           coalesce(last_used_at < now() - interval '1 minute', true) AS use_is_news
    FROM find_api_key(%(id)s)
"""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; ``text`` is the only copy there will ever be."""

    id: str
    text: str
    row: ApiKey


class EndedKeyError(UnauthorizedError):
    """A key of ours, shown with its right secret, that was revoked or has expired."""

    def __init__(self, detail: str, *, code: str, tenant_id: str, key_id: str) -> None:
        super().__init__(detail, code=code)
        self.tenant_id = tenant_id
        self.key_id = key_id


def create_tenant(session: Session, name: str) -> Tenant:
    """Make a tenant; needs a system session.

    Raises:
        InvalidInputError: the name is not valid.
        ConflictError: ``tenant_exists``.
    """
    check_name(name, "tenant")
    tenant = session.scalars(
        insert(Tenant)
        .values(id=new_id(TENANT), name=name)
        .on_conflict_do_nothing(index_elements=[Tenant.name])
        .returning(Tenant)
    ).one_or_none()
    if tenant is None:
        raise ConflictError(
            f"there is a tenant {name!r} already: choose another name, or make a further key of it "
            f"with `darkroom tenants key {name}`",
            code="tenant_exists",
        )
    return tenant


def get_tenant(session: Session, name: str) -> Tenant:
    """The tenant of this name; needs a system session.

    Raises:
        NotFoundError: ``tenant_not_found``.
    """
    tenant = session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        raise NotFoundError(
            f"there is no tenant {name[:120]!r}: `darkroom tenants list` names all there are",
            code="tenant_not_found",
        )
    return tenant


def create_key(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    scopes: Iterable[Scope | str],
    pepper: str,
    expires_at: datetime | None = None,
) -> NewKey:
    """Make a key of the tenant; its text is in the answer and nowhere else.

    Raises:
        InvalidInputError: name, scopes (``scope_unknown``, ``scopes_missing``) or expiry
            (``expiry_invalid``) are not valid.
    """
    check_name(name, "key")
    granted = _check_scopes(scopes)
    expires_at = check_expiry(expires_at)
    return add_key(
        session, tenant_id, name=name, scopes=granted, pepper=pepper, expires_at=expires_at
    )


def add_key(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    scopes: list[str],
    pepper: str,
    expires_at: datetime | ColumnElement[Any] | None,
    line_id: str | None = None,
) -> NewKey:
    """A key's row, of values that were checked before."""
    key_id = new_id(KEY)
    secret = base64.b32encode(secrets.token_bytes(32)).decode().rstrip("=").lower()
    body = f"dk_{key_id.removeprefix(KEY + '_')}_{secret}"
    row = ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name=name,
        secret_hash=_hash_secret(secret, pepper),
        scopes=scopes,
        expires_at=expires_at,
        line_id=line_id,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return NewKey(key_id, f"{body}_{_checksum(body)}", row)


def look_up_key(db: Database, key_text: str, pepper: str) -> tuple[Principal, float]:
    """The principal that a key's text proves, and the seconds until the key expires.

    Opens transactions of its own.

    Raises:
        UnauthorizedError: ``key_malformed``, ``key_unknown``, ``key_expired`` or
            ``key_revoked``; the last two only to who holds the right secret.
    """
    match = _KEY_TEXT.fullmatch(key_text)
    if match is None or _checksum(key_text.rpartition("_")[0]) != match[3]:
        raise UnauthorizedError(
            "this is no key of Darkroom; a key begins with dk_ and is copied whole",
            code="key_malformed",
        )
    given = _hash_secret(match[2], pepper)
    found = db.ask(_FIND, {"id": f"{KEY}_{match[1]}"})
    row = found[0] if found else None
    # An unknown id is compared too, so that both ways to be wrong take the same time.
    known = hmac.compare_digest(given, row.secret_hash if row is not None else "0" * 64)
    if row is None or not known:
        raise UnauthorizedError("this key is not known here", code="key_unknown")
    whose = {"tenant_id": row.tenant_id, "key_id": row.id}
    if row.revoked:
        raise EndedKeyError("this key was revoked", code="key_revoked", **whose)
    seconds_left = math.inf if row.seconds_left is None else row.seconds_left
    if seconds_left <= 0:
        raise EndedKeyError("this key has expired", code="key_expired", **whose)
    if row.use_is_news:
        _note_use(db, row.tenant_id, row.id)
    # A scope that this version does not know (a newer one wrote it) grants nothing here.
    scopes = frozenset(Scope(word) for word in row.scopes if word in set(Scope))
    return Principal(tenant_id=row.tenant_id, key_id=row.id, scopes=scopes), seconds_left


def look_up_seconds(db: Database, tenant_id: str, key_id: str) -> float:
    """The seconds until a tenant's key expires; 0 where it has, was revoked, or never was."""
    found = db.ask(_FIND, {"id": key_id})
    if not found or found[0].tenant_id != tenant_id or found[0].revoked:
        return 0.0
    seconds_left = found[0].seconds_left
    return math.inf if seconds_left is None else max(seconds_left, 0.0)


def list_keys(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[ApiKey], bool]:
    """A page of the tenant's keys, newest first, revoked ones too; and whether more follow."""
    return fetch_page(
        session,
        select(ApiKey).where(ApiKey.tenant_id == tenant_id),
        ApiKey.id,
        after=after,
        limit=limit,
    )


def revoke_key(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """End a key for good; a second time changes nothing.

    Raises:
        NotFoundError: ``key_not_found``.
    """
    row = session.scalars(
        update(ApiKey)
        .where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).one_or_none()
    if row is None:
        raise key_not_found(key_id)
    return row


def key_not_found(key_id: str) -> NotFoundError:
    """The error of an id that no key of the tenant has."""
    return NotFoundError(f"there is no key {key_id[:60]!r}", code="key_not_found")


def _note_use(db: Database, tenant_id: str, key_id: str) -> None:
    with db.tenant(tenant_id) as session:
        session.execute(
            text(
                "UPDATE api_keys SET last_used_at = now() WHERE tenant_id = :tenant AND id = :id "
                "AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')"
            ),
            {"tenant": tenant_id, "id": key_id},
        )


def check_expiry(expires_at: datetime | None) -> datetime | None:
    """The moment in UTC, where it lies in the future; None stays None.

    Raises:
        InvalidInputError: ``expiry_invalid``.
    """
    if expires_at is None:
        return None
    try:
        # In UTC, since a zone can push the last of all years over the end of the calendar.
        moment = expires_at.astimezone(UTC) if expires_at.tzinfo is not None else None
    except OverflowError:
        moment = None
    if moment is None or moment <= utc_now():
        raise InvalidInputError(
            "expires_at must lie in the future and carry a time zone", code="expiry_invalid"
        )
    return moment


def _check_scopes(scopes: Iterable[Scope | str]) -> list[str]:
    wanted = {str(scope) for scope in scopes}
    known = {scope.value for scope in Scope}
    if unknown := sorted(wanted - known):
        raise InvalidInputError(
            f"unknown scope {unknown[0][:60]!r}; there are {', '.join(sorted(known))}",
            code="scope_unknown",
        )
    if not wanted:
        raise InvalidInputError("a key needs at least one scope", code="scopes_missing")
    return sorted(wanted)


def check_pepper(pepper: str) -> None:
    """Raise SettingsError where the pepper is too short to protect a stolen table of hashes."""
    if len(pepper) < _PEPPER_MIN_CHARACTERS:
        raise SettingsError(
            f"DARKROOM_KEY_PEPPER must have {_PEPPER_MIN_CHARACTERS} characters or more; "
            "keys made under one pepper are void under another"
        )


def _hash_secret(secret: str, pepper: str) -> str:
    check_pepper(pepper)
    # A plain keyed hash is enough: the secret has 256 random bits, there is nothing to guess.
    return hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
