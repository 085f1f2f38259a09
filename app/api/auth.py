"""Bearer key → principal, before anything else of a request is looked at."""

from __future__ import annotations

from flask import g, request

from app.api.audit import record_denial
from app.api.parts import parts, principal
from app.errors import ForbiddenError, UnauthorizedError
from app.tenants.keys import EndedKeyError
from app.tenants.scopes import Scope, require


def check_key(scope: Scope | None) -> None:
    """Set the request's principal, and let it pass where its key carries ``scope``.

    Raises:
        UnauthorizedError: no key, or not a valid one.
        ForbiddenError: ``scope_missing``.
    """
    word, _, key = request.headers.get("Authorization", "").partition(" ")
    if word.lower() != "bearer" or not key.strip():
        raise UnauthorizedError(
            "this address needs a key: send the header Authorization: Bearer dk_…",
            code="key_missing",
        )
    here = parts()
    try:
        g.principal = here.keys.authenticate(here.db, key.strip())
    except EndedKeyError as error:
        record_denial(error.tenant_id, error.key_id, error.code)
        raise
    if scope is not None:
        require_scope(scope)


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
