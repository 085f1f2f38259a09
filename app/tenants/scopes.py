"""What a key may do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from app.errors import ForbiddenError


class Scope(enum.StrEnum):
    """One permission of a key."""

    #: See jobs, uploads, datasets, their results and metrics.
    JOBS_READ = "jobs:read"
    #: Hand over uploads, freeze datasets, submit and cancel jobs.
    JOBS_WRITE = "jobs:write"
    #: See models and their versions.
    MODELS_READ = "models:read"
    #: Import weights, fine-tune, move aliases.
    MODELS_WRITE = "models:write"
    #: Correct labels; guards nothing yet, since no address corrects any.
    LABELS_WRITE = "labels:write"
    #: Download what jobs made, and weights.
    EXPORTS = "exports"
    #: Everything, and the keys of the tenant.
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking: the tenant whose rows it may touch, by which key, with which scopes."""

    tenant_id: str
    key_id: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the key carries the scope; ``admin`` carries all of them."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def require(principal: Principal, scope: Scope) -> None:
    """Let the principal pass, if its key carries the scope.

    Raises:
        ForbiddenError: ``scope_missing``.
    """
    if not principal.may(scope):
        raise ForbiddenError(
            f"this key lacks the scope {scope.value!r}; it has "
            f"{', '.join(sorted(principal.scopes)) or 'none'}",
            code="scope_missing",
        )
