"""Keys that were looked up a moment ago."""

from __future__ import annotations

import hashlib

from app.clock import monotonic_seconds
from app.db.session import Database
from app.errors import UnauthorizedError
from app.tenants.keys import look_up_key, look_up_seconds
from app.tenants.scopes import Principal

#: A key that was looked up serves so long: what is revoked elsewhere ends well within 5 s.
SERVES_SECONDS = 2.0
#: Keys known at once, at most.
_MOST = 10_000


class KnownKeys:
    """Authenticates for one process, so that who asks often costs the database little.

    A key that another process revokes is refused here :data:`SERVES_SECONDS` later at most.
    Threads share it.
    """

    def __init__(self, pepper: str) -> None:
        self._pepper = pepper
        #: Hash of a key's text → when it is looked up again, and whose it is. The text itself
        #: has 256 random bits, so a plain hash tells nobody what it was. Where only the id of a key
        #: is known it stands for the hash, which is longer.
        self._known: dict[bytes, tuple[float, Principal]] = {}
        #: How often a key was revoked here: what was looked up before may be that one.
        self._revocations = 0

    def authenticate(self, db: Database, key_text: str) -> Principal:
        """The principal that a key's text proves; opens transactions of its own.

        Raises:
            UnauthorizedError: see :func:`look_up_key`.
        """
        name = _name(key_text)
        now = monotonic_seconds()
        until, principal = self._known.get(name, (0.0, None))
        if principal is not None and now < until:
            return principal
        revocations = self._revocations
        try:
            principal, seconds_left = look_up_key(db, key_text, self._pepper)
        except UnauthorizedError:
            self._known.pop(name, None)
            raise
        self._keep(name, now + min(SERVES_SECONDS, seconds_left), principal, revocations)
        return principal

    def find(self, db: Database, tenant_id: str, key_id: str) -> Principal | None:
        """The tenant's key of this id as a principal without scopes; None where it has ended."""
        name = key_id.encode()
        now = monotonic_seconds()
        until, principal = self._known.get(name, (0.0, None))
        if principal is not None and principal.tenant_id == tenant_id and now < until:
            return principal
        revocations = self._revocations
        seconds_left = look_up_seconds(db, tenant_id, key_id)
        if seconds_left <= 0:
            self._known.pop(name, None)
            return None
        principal = Principal(tenant_id=tenant_id, key_id=key_id, scopes=frozenset())
        self._keep(name, now + min(SERVES_SECONDS, seconds_left), principal, revocations)
        return principal

    def _keep(self, name: bytes, until: float, principal: Principal, revocations: int) -> None:
        """Know a key that was looked up, unless one was revoked here since."""
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = (until, principal)
        if self._revocations != revocations:
            self._known.pop(name, None)

    def knows(self, key_text: str) -> bool:
        """Whether this process found the key good before, and not refused since."""
        return _name(key_text) in self._known

    def forget(self, key_id: str) -> None:
        """Look this key up again when it comes next: it was revoked here."""
        self._revocations += 1
        for name, (_, principal) in list(self._known.items()):
            if principal.key_id == key_id:
                self._known.pop(name, None)


def _name(key_text: str) -> bytes:
    return hashlib.sha256(key_text.encode()).digest()
