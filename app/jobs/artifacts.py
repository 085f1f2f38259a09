"""Files that jobs made."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import NotFoundError
from app.ids import ARTIFACT, new_id
from app.jobs.tables import Artifact


def add_artifact(
    session: Session,
    tenant_id: str,
    job_id: str,
    *,
    name: str,
    media_type: str,
    object_key: str,
    size_bytes: int,
    sha256: str,
) -> Artifact:
    """Register a file that lies in the object store already."""
    artifact = Artifact(
        id=new_id(ARTIFACT),
        tenant_id=tenant_id,
        job_id=job_id,
        name=name,
        media_type=media_type,
        object_key=object_key,
        size_bytes=size_bytes,
        sha256=sha256,
    )
    session.add(artifact)
    session.flush()
    return artifact


def get_artifact(session: Session, tenant_id: str, artifact_id: str) -> Artifact:
    """The artifact's row. Raises NotFoundError where this tenant has no such artifact."""
    artifact = session.scalar(
        select(Artifact).where(Artifact.id == artifact_id, Artifact.tenant_id == tenant_id)
    )
    if artifact is None:
        raise NotFoundError(f"no artifact {artifact_id}", code="artifact_not_found")
    return artifact


def list_artifacts(
    session: Session, tenant_id: str, job_id: str, *, after: str | None = None, limit: int = 50
) -> tuple[list[Artifact], bool]:
    """A page of a job's artifacts, oldest first, and whether more follow."""
    query = select(Artifact).where(Artifact.tenant_id == tenant_id, Artifact.job_id == job_id)
    if after is not None:
        query = query.where(Artifact.id > after)
    rows = list(session.scalars(query.order_by(Artifact.id).limit(limit + 1)))
    return rows[:limit], len(rows) > limit
