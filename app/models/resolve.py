"""Finds model versions by what people write: ``digits``, ``digits@production``, ``digits@3``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session

from app.db.page import fetch_page
from app.errors import ConflictError, NotFoundError
from app.ids import MODEL_VERSION
from app.models.registered import registered_spec
from app.models.spec import ModelSpec
from app.models.states import VersionState
from app.models.tables import Alias, Model, ModelVersion

PRODUCTION = "production"
_NAMES_SHOWN = 10

# Built once: every submission asks one of these.
_MODEL_ID = (
    select(Model.id)
    .where(Model.tenant_id == bindparam("tenant_id"), Model.name == bindparam("name"))
    .scalar_subquery()
)
_VERSION = (
    select(ModelVersion)
    .where(ModelVersion.tenant_id == bindparam("tenant_id"))
    # Read afresh: a transition in this very session writes past the objects it holds.
    .execution_options(populate_existing=True)
)
_BY_ID = _VERSION.where(ModelVersion.id == bindparam("id"))
_BY_NUMBER = _VERSION.where(
    ModelVersion.model_id == _MODEL_ID, ModelVersion.number == bindparam("number")
)
_BY_ALIAS = _VERSION.where(
    ModelVersion.id
    == select(Alias.version_id)
    .where(
        Alias.tenant_id == bindparam("tenant_id"),
        Alias.model_id == _MODEL_ID,
        Alias.name == bindparam("alias"),
    )
    .scalar_subquery()
)


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model as a list shows it."""

    id: str
    name: str
    created_at: datetime
    #: Alias → number of the version it points to.
    aliases: dict[str, int]
    version_count: int
    latest_number: int


def resolve_version(session: Session, tenant_id: str, reference: str) -> ModelVersion:
    """The ready version that a reference means; see :func:`get_version`.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_ready``: pending, failed or archived.
    """
    version = get_version(session, tenant_id, reference)
    if version.state != VersionState.READY:
        reason = {
            VersionState.PENDING: "its job is not done yet",
            VersionState.FAILED: "its job failed",
            VersionState.ARCHIVED: "it takes no new jobs",
            VersionState.DELETED: "its weights are gone",
        }[VersionState(version.state)]
        raise ConflictError(
            f"model version {reference[:120]!r} is {version.state}: {reason}",
            code="model_not_ready",
        )
    return version


def get_version(session: Session, tenant_id: str, reference: str) -> ModelVersion:
    """The version that a reference means, whatever its state.

    ``name@3`` is a number, ``name@alias`` an alias, ``name`` alone ``name@production``, and
    ``mdv_…`` an id.

    Raises:
        NotFoundError: ``model_not_found``; the detail lists what exists.
    """

    def find(query: Select[ModelVersion], **words: object) -> ModelVersion | None:
        return session.scalar(query, {"tenant_id": tenant_id, **words})

    version: ModelVersion | None = None
    if reference.startswith(f"{MODEL_VERSION}_"):
        version = find(_BY_ID, id=reference)
        if version is not None:
            return version
    name, _, selector = reference.partition("@")
    selector = selector or PRODUCTION
    if not (selector.isascii() and selector.isdigit()):
        version = find(_BY_ALIAS, name=name, alias=selector)
    # Longer numbers than PostgreSQL's integer exist nowhere.
    elif len(selector) < 10:
        version = find(_BY_NUMBER, name=name, number=int(selector))
    if version is None:
        raise _no_such_version(session, tenant_id, get_model(session, tenant_id, name), selector)
    return version


def get_model(session: Session, tenant_id: str, name: str) -> Model:
    """The model of this name.

    Raises:
        NotFoundError: ``model_not_found``; the detail lists what exists.
    """
    model = session.scalar(select(Model).where(Model.tenant_id == tenant_id, Model.name == name))
    if model is None:
        names = session.scalars(
            select(Model.name)
            .where(Model.tenant_id == tenant_id)
            .order_by(Model.name)
            .limit(_NAMES_SHOWN + 1)
        ).all()
        raise NotFoundError(
            f"there is no model {name[:120]!r}; {_listed('models', names)}",
            code="model_not_found",
        )
    return model


def find_alias(
    session: Session, tenant_id: str, model: str, alias: str
) -> tuple[Alias, ModelVersion]:
    """An alias of a model and the version that it points to.

    Raises:
        NotFoundError: ``model_not_found``; the detail lists what exists.
    """
    found = get_model(session, tenant_id, model)
    row = session.execute(
        select(Alias, ModelVersion)
        .join(ModelVersion, ModelVersion.id == Alias.version_id)
        .where(Alias.tenant_id == tenant_id, Alias.model_id == found.id, Alias.name == alias)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if row is None:
        raise _no_such_version(session, tenant_id, found, alias)
    return row[0], row[1]


def list_models(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[ModelSummary], bool]:
    """A page of the tenant's models, newest first, and whether more follow."""
    models, has_more = fetch_page(
        session,
        select(Model).where(Model.tenant_id == tenant_id),
        Model.id,
        after=after,
        limit=limit,
    )
    return _summaries(session, tenant_id, models), has_more


def summarise_model(session: Session, tenant_id: str, name: str) -> ModelSummary:
    """One model as a list shows it.

    Raises:
        NotFoundError: ``model_not_found``.
    """
    return _summaries(session, tenant_id, [get_model(session, tenant_id, name)])[0]


def list_versions(
    session: Session, tenant_id: str, model: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[ModelVersion], bool]:
    """A page of the model's versions, highest number first, and whether more follow.

    Raises:
        NotFoundError: ``model_not_found``: no such model, or no such version to go on after.
    """
    found = get_model(session, tenant_id, model)
    statement = select(ModelVersion).where(
        ModelVersion.tenant_id == tenant_id, ModelVersion.model_id == found.id
    )
    if after is not None:
        # Ids of two processes may differ in order from the numbers they got.
        last = get_version(session, tenant_id, after)
        statement = statement.where(ModelVersion.number < last.number)
    rows = list(session.scalars(statement.order_by(ModelVersion.number.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def names_of_versions(
    session: Session, tenant_id: str, version_ids: Collection[str]
) -> dict[str, str]:
    """``{"mdv_…": "digits@3"}`` for those of the ids that exist."""
    if not version_ids:
        return {}
    rows = session.execute(
        select(ModelVersion.id, Model.name, ModelVersion.number)
        .join(Model, Model.id == ModelVersion.model_id)
        .where(ModelVersion.tenant_id == tenant_id, ModelVersion.id.in_(set(version_ids)))
    )
    return {row.id: f"{row.name}@{row.number}" for row in rows}


def spec_of(version: ModelVersion) -> ModelSpec:
    """What the version is apart from its weights.

    Raises:
        ConflictError: ``model_not_ready``: classes and preprocessing are not known yet; or
            ``preprocess_changed``.
    """
    if version.classes is None or version.preprocess is None:
        raise ConflictError(f"model version {version.id!r} is not ready", code="model_not_ready")
    return registered_spec(
        {
            "arch": version.arch,
            "arch_options": version.arch_options,
            "classes": version.classes,
            "preprocess": version.preprocess,
        },
        version.preprocess_sha256,
        version.id,
    )


def _summaries(session: Session, tenant_id: str, models: list[Model]) -> list[ModelSummary]:
    ids = [model.id for model in models]
    counted: dict[str, tuple[int, int]] = {
        row.model_id: (row.versions, row.latest)
        for row in session.execute(
            select(
                ModelVersion.model_id,
                func.count().label("versions"),
                func.max(ModelVersion.number).label("latest"),
            )
            .where(ModelVersion.tenant_id == tenant_id, ModelVersion.model_id.in_(ids))
            .group_by(ModelVersion.model_id)
        )
    }
    aliases: dict[str, dict[str, int]] = {}
    for row in session.execute(_aliases(tenant_id, ids)):
        aliases.setdefault(row.model_id, {})[row.name] = row.number
    return [
        ModelSummary(
            id=model.id,
            name=model.name,
            created_at=model.created_at,
            aliases=aliases.get(model.id, {}),
            version_count=counted.get(model.id, (0, 0))[0],
            latest_number=counted.get(model.id, (0, 0))[1],
        )
        for model in models
    ]


def _aliases(tenant_id: str, model_ids: list[str]) -> Any:
    return (
        select(Alias.model_id, Alias.name, ModelVersion.number)
        .join(ModelVersion, ModelVersion.id == Alias.version_id)
        .where(Alias.tenant_id == tenant_id, Alias.model_id.in_(model_ids))
        .order_by(Alias.name)
    )


def _no_such_version(
    session: Session, tenant_id: str, model: Model, selector: str
) -> NotFoundError:
    summary = _summaries(session, tenant_id, [model])[0]
    known = ", ".join(f"@{name} (version {number})" for name, number in summary.aliases.items())
    what = "version" if selector.isdigit() else "alias"
    return NotFoundError(
        f"model {model.name!r} has no {what} {selector[:120]!r}; its aliases are "
        f"{known or 'none'}, its latest version is {summary.latest_number or 'none'}",
        code="model_not_found",
    )


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return f"there are no {what} yet"
    shown = ", ".join(list(names)[:_NAMES_SHOWN])
    return f"{what} here: {shown}{' and more' if len(names) > _NAMES_SHOWN else ''}"
