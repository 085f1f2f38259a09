"""Bearer key → principal, before anything else of a request is looked at."""

from __future__ import annotations

from flask import g, request

from app.api.audit import record_denial
from app.api.parts import Parts, parts, principal
from app.errors import ForbiddenError, UnauthorizedError
from app.tenants.keys import EndedKeyError
from app.tenants.scopes import Principal, Scope, require


def check_key(scope: Scope | None) -> None:
    """Set the request's principal, and let it pass where its key carries ``scope``.

    Raises:
        UnauthorizedError: no key, or not a valid one.
        ForbiddenError: ``scope_missing``.
        TooManyError: ``too_many_requests``.
    """
    here = parts()
    word, _, key = request.headers.get("Authorization", "").partition(" ")
    key = key.strip() if word.lower() == "bearer" else ""
    # Who has shown a good key is not held up by those who guess beside it.
    if not here.keys.knows(key):
        here.rates.admit_stranger(request.remote_addr)
    try:
        g.principal = _authenticate(here, key)
    except UnauthorizedError:
        here.rates.note_failure(request.remote_addr)
        raise
    here.rates.admit_request(principal().tenant_id)
    if scope is not None:
        require_scope(scope)


def _authenticate(here: Parts, key: str) -> Principal:
    if not key:
        raise UnauthorizedError(
            "this address needs a key: send the header Authorization: Bearer dk_…",
            code="key_missing",
        )
    try:
        return here.keys.authenticate(here.db, key)
    except EndedKeyError as error:
        record_denial(error.tenant_id, error.key_id, error.code)
        raise


def require_scope(scope: Scope) -> None:
    """Let the request pass where its key carries ``scope``; a refusal is audited.

    Raises:
        ForbiddenError: ``scope_missing``.
    """
    found = principal()
    try:
        require(found, scope)
    except ForbiddenError as error:
        record_denial(found.tenant_id, found.key_id, error.code, scope=scope.value)
        raise
