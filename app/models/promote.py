"""Moves the aliases of a model: the one thing about a version that ever changes."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import ConflictError, NotFoundError
from app.models.resolve import get_model
from app.models.states import VersionState
from app.models.tables import Alias, ModelVersion
from app.names import check_alias


def move_alias(session: Session, tenant_id: str, model: str, alias: str, version_id: str) -> Alias:
    """Point ``model@alias`` at a ready version of that model, from the next job on.

    Jobs resolved their version when they were submitted, so those that run do not change.

    Raises:
        InvalidInputError: ``alias_name_invalid``.
        NotFoundError: ``model_not_found``: no such model, or it has no such version.
        ConflictError: ``model_not_ready``.
    """
    check_alias(alias)
    found = get_model(session, tenant_id, model)
    state = session.scalar(
        select(ModelVersion.state)
        .where(
            ModelVersion.tenant_id == tenant_id,
            ModelVersion.model_id == found.id,
            ModelVersion.id == version_id,
        )
        # The version must not be archived between this look and the move.
        .with_for_update(read=True)
    )
    if state is None:
        raise NotFoundError(
            f"model {model!r} has no version {version_id[:60]!r}", code="model_not_found"
        )
    if state != VersionState.READY:
        raise ConflictError(
            f"model version {version_id!r} is {state}; an alias points only at a ready one",
            code="model_not_ready",
        )
    fresh = insert(Alias).values(
        model_id=found.id, name=alias, tenant_id=tenant_id, version_id=version_id
    )
    return session.scalars(
        fresh.on_conflict_do_update(
            index_elements=[Alias.model_id, Alias.name],
            set_={"version_id": fresh.excluded.version_id, "updated_at": func.now()},
        )
        .returning(Alias)
        .execution_options(populate_existing=True)
    ).one()
