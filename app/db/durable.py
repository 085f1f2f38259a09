"""Whether PostgreSQL keeps what it has committed; the service's whole promise rests on that."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

#: Setting → what it must not be, what would be lost, and the value that is right.
_RULES = {
    "fsync": ("off", "a crash of its machine would lose jobs that were accepted", "on"),
    "full_page_writes": ("off", "a crash in the middle of a write would spoil tables", "on"),
    "synchronous_commit": ("off", "a crash would lose the last answers that were given", "on"),
}
_LOOK = text("SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in _RULES))


def durability_faults(session: Session) -> list[str]:
    """A sentence for each setting under which a COMMIT may be lost; none where all is well."""
    found = session.execute(_LOOK).one()._mapping
    return [
        f"PostgreSQL runs with {name}={found[name]}: {loss}. Set {name}={right} and restart it."
        for name, (wrong, loss, right) in _RULES.items()
        if found[name] == wrong
    ]
