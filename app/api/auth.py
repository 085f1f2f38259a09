"""Bearer key → principal, before anything else of a request is looked at."""

from __future__ import annotations

from flask import g, request

from app.api.parts import parts
from app.errors import UnauthorizedError
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
    found = here.keys.authenticate(here.db, key.strip())
    if scope is not None:
        require(found, scope)
    g.principal = found
