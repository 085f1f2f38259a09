"""Files of a job that fit into memory, on their way to the object store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.artifacts import add_artifact
from app.jobs.claim import Lease
from app.storage import keys
from worker.process import WorkerProcess


def store_artifact(
    process: WorkerProcess, lease: Lease, name: str, media_type: str, content: bytes
) -> dict[str, Any]:
    """Store a file that a job made; the columns of its artifact, not registered yet.

    The attempt is part of the key: one that lost its lease overwrites nothing of the next.

    Raises:
        StorageError: it could not be written; trying again may help.
    """
    key = keys.artifact(lease.tenant_id, lease.job_id, f"{lease.attempt}-{name}")
    process.store.put(process.settings.bucket, key, content, media_type)
    return {
        "name": name,
        "media_type": media_type,
        "object_key": key,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def add_artifacts(session: Session, lease: Lease, stored: Sequence[Mapping[str, Any]]) -> None:
    """Register what :func:`store_artifact` has stored, with the job's end."""
    for columns in stored:
        add_artifact(session, lease.tenant_id, lease.job_id, **columns)
