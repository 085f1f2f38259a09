"""Takes versions out of use: archived ones take no new jobs, deleted ones lose their weights."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.errors import ConflictError
from app.models.resolve import get_version
from app.models.states import VERSION_SOURCES, VersionState
from app.models.tables import Alias, ModelVersion


def archive_version(session: Session, tenant_id: str, model: str, number: int) -> None:
    """Let a version take no new jobs; those under way go on, and it can be restored.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``version_in_use``: an alias points at it; ``model_not_ready``.
    """
    version = _locked(session, tenant_id, model, number)
    aliases = session.scalars(
        select(Alias.name)
        .where(Alias.tenant_id == tenant_id, Alias.version_id == version.id)
        .order_by(Alias.name)
    ).all()
    if aliases:
        raise ConflictError(
            f"{' and '.join(f'@{name}' for name in aliases)} of {model!r} "
            f"point{'s' if len(aliases) == 1 else ''} at version {number}: point elsewhere first",
            code="version_in_use",
        )
    name = f"{model}@{number}"
    _move(session, tenant_id, version, VersionState.ARCHIVED, name=name, word="archived")


def restore_version(session: Session, tenant_id: str, model: str, number: int) -> None:
    """Let an archived version take jobs again, also one whose weights were about to be deleted.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_archived``.
    """
    version = _locked(session, tenant_id, model, number)
    if version.state != VersionState.ARCHIVED:
        raise ConflictError(
            f"model version {model}@{number} is {version.state}, not archived",
            code="model_not_archived",
        )
    name = f"{model}@{number}"
    _move(session, tenant_id, version, VersionState.READY, name=name, word="restored")


def delete_version(session: Session, tenant_id: str, model: str, number: int) -> None:
    """Give up an archived version, or one whose job failed; asked twice, it is the same.

    The dispatcher's clean-up deletes the weights a few minutes later, once no open job of any
    tenant uses them; until then :func:`restore_version` takes it back. One that never had any is
    deleted now. Number, scores and lineage stay, as results name them.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_archived``.
    """
    version = _locked(session, tenant_id, model, number)
    if version.state == VersionState.DELETED:
        return
    if version.state not in VERSION_SOURCES[VersionState.DELETED]:
        raise ConflictError(
            f"model version {model}@{number} is {version.state}: archive it before you delete it",
            code="model_not_archived",
        )
    version.delete_asked_at = version.delete_asked_at or func.now()
    session.flush()
    if version.weights_key is None:
        transition(
            session,
            ModelVersion,
            VersionState.DELETED,
            sources=VERSION_SOURCES[VersionState.DELETED],
            where=[ModelVersion.tenant_id == tenant_id, ModelVersion.id == version.id],
        )
    session.refresh(version)


def _locked(session: Session, tenant_id: str, model: str, number: int) -> ModelVersion:
    found = get_version(session, tenant_id, f"{model}@{number}")
    # An alias that is being moved to it holds the row until it has moved.
    session.execute(select(ModelVersion.id).where(ModelVersion.id == found.id).with_for_update())
    session.refresh(found)
    return found


def _move(
    session: Session,
    tenant_id: str,
    version: ModelVersion,
    to: VersionState,
    *,
    name: str,
    word: str,
) -> None:
    # ``ready_at`` tells when it became ready first.
    values: dict[str, Any] = {"delete_asked_at": None}
    if to is VersionState.READY:
        values["ready_at"] = version.ready_at
    moved = transition(
        session,
        ModelVersion,
        to,
        sources=VERSION_SOURCES[to] - {VersionState.PENDING},
        where=[ModelVersion.tenant_id == tenant_id, ModelVersion.id == version.id],
        values=values,
    )
    if not moved:
        raise ConflictError(
            f"model version {name} is {version.state} and cannot be {word}",
            code="model_not_ready",
        )
