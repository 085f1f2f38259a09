"""Whether objects and rows agree once the dispatcher has cleaned up after the faults.

An attempt that was fenced, or died between storing and recording, leaves objects that no row
names. That is allowed for a while (``cleanup_objects.LEFTOVER_AGE``), since it may still be
writing. So the question is put when every worker is dead and the rows say that the while is
over: then what lies in the service's own bucket must be what rows name, no more and no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from app.db.session import Database
from app.dispatch.cleanup_objects import (
    PARTS_AGE,
    give_up_uploads,
    tidy_checkpoints,
    tidy_jobs,
    tidy_uploads,
)
from app.storage import keys
from app.storage.s3 import ObjectStore

# Longer than anything is waited for.
_AGE = 2 * PARTS_AGE
_AGED = (
    "UPDATE jobs SET created_at = created_at - :age, ended_at = ended_at - :age "
    "WHERE tenant_id = ANY(:tenants)",
    "UPDATE uploads SET created_at = created_at - :age WHERE tenant_id = ANY(:tenants)",
)
_OPEN = text("SELECT count(*) FROM jobs WHERE tenant_id = ANY(:tenants) AND ended_at IS NULL")
# Weights as the client sent them, until an import has succeeded.
_MAY_LIE = """
    SELECT object_key FROM uploads
    WHERE tenant_id = ANY(:tenants) AND state NOT IN ('failed', 'imported') AND kind = 'weights'
    """
_MUST_LIE = """
    SELECT object_key FROM shards WHERE tenant_id = ANY(:tenants)
    UNION SELECT object_key FROM artifacts WHERE tenant_id = ANY(:tenants)
    UNION SELECT weights_key FROM model_versions WHERE tenant_id = ANY(:tenants)
        AND weights_key IS NOT NULL
    """


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was compared; ``strays`` and ``missing`` are breaches."""

    objects: int
    #: Objects that the clean-up deleted.
    cleaned: int
    #: Objects that no row names.
    strays: list[str]
    #: Rows whose object is not there.
    missing: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether objects and rows agree."""
        return not (self.strays or self.missing)


def find_leftovers(
    db: Database, store: ObjectStore, bucket: str, tenants: Sequence[str]
) -> Leftovers:
    """Let the time pass in these tenants' rows, clean up as the dispatcher does, and compare.

    Nobody may be at work any more.
    """
    words = {"tenants": list(tenants)}
    before = _objects(store, bucket, tenants)
    with db.system() as session:
        still_open = session.scalar(_OPEN, words)
        assert not still_open, f"{still_open} jobs are open: somebody may still write for them"
        for statement in _AGED:
            session.execute(text(statement), words | {"age": _AGE})
    # Each step is bounded, so the next one goes on.
    while (
        give_up_uploads(db)
        + tidy_uploads(db, store, bucket)
        + tidy_checkpoints(db, store, bucket)
        + tidy_jobs(db, store, bucket)
    ):
        continue
    after = _objects(store, bucket, tenants)
    with db.system() as session:
        must_lie = set(session.scalars(text(_MUST_LIE), words))
        may_lie = must_lie | set(session.scalars(text(_MAY_LIE), words))
    return Leftovers(
        objects=len(after),
        cleaned=len(before - after),
        strays=sorted(after - may_lie),
        missing=sorted(must_lie - after),
    )


def _objects(store: ObjectStore, bucket: str, tenants: Sequence[str]) -> set[str]:
    return {
        found.key
        for tenant_id in tenants
        for found in store.list(bucket, keys.tenant_prefix(tenant_id))
    }
