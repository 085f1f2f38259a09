"""Whether a tenant has room for more bytes."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.tenants.quotas import Quotas, too_many

_RETRY_SECONDS = 60

# An archive is deleted once its images lie in shards, a weights file once it is a model version.
_STORED = text(
    """
    SELECT (SELECT coalesce(sum(packed_bytes + CASE
                WHEN state IN ('receiving', 'stored') OR (state = 'ready' AND kind = 'weights')
                THEN coalesce(size_bytes, 0) ELSE 0 END), 0)
            FROM uploads
            WHERE tenant_id = :tenant_id AND id IS DISTINCT FROM :but_for)
         + (SELECT coalesce(sum(weights_bytes), 0) FROM model_versions
            WHERE tenant_id = :tenant_id AND state IN ('ready', 'archived'))
         + (SELECT coalesce(sum(size_bytes), 0) FROM artifacts WHERE tenant_id = :tenant_id)
    """
)


def stored_bytes(session: Session, tenant_id: str, *, but_for: str | None = None) -> int:
    """Bytes of the tenant's uploads, weights and artifacts, without those of one upload."""
    words = {"tenant_id": tenant_id, "but_for": but_for}
    return int(session.scalar(_STORED, words) or 0)


def check_room(
    session: Session, tenant_id: str, quotas: Quotas, size_bytes: int, *, but_for: str | None = None
) -> None:
    """Let the tenant store so many bytes more; at least one where their number is not known.

    Raises:
        TooManyError: ``too_many_bytes``.
    """
    stored = stored_bytes(session, tenant_id, but_for=but_for)
    if stored + max(size_bytes, 1) > quotas.max_stored_bytes:
        raise too_many(
            "too_many_bytes",
            "max_stored_bytes",
            quotas.max_stored_bytes,
            f"{stored} bytes stored",
            f"{size_bytes} more do not fit; ask whoever runs this service for more room",
            retry_after_seconds=_RETRY_SECONDS,
        )
