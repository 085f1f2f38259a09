"""Models: import weights, read versions and give them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import describe, record
from app.api.idempotency import once
from app.api.jobs import accepted
from app.api.parts import parts, principal
from app.api.replies import Reply, page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.job_answers import JobAnswer
from app.api.schemas.library import (
    ImportVersion,
    ModelAnswer,
    ModelPage,
    ModelVersionAnswer,
    ModelVersionPage,
    NamePath,
    SpeedAnswer,
    VersionPath,
)
from app.audit.actions import Action
from app.jobs.states import JobKind
from app.jobs.submit import submit_import
from app.models.resolve import get_version, summarise_model
from app.models.resolve import list_models as page_models
from app.models.resolve import list_versions as page_versions
from app.models.retire import delete_version
from app.models.speeds import DeviceSpeed, speeds_of
from app.models.tables import ModelVersion
from app.tenants.scopes import Scope

resource = Resource("models", "Models", "Names and their immutable versions.")


@resource.route_as("get", "/models", answers={200: ModelPage}, scope=Scope.MODELS_READ)
def list_models(query: PageQuery) -> Response:
    """List models, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_models(session, tenant_id, after=query.after, limit=query.limit)
    return send(ModelPage(**page_fields(rows, has_more, ModelAnswer.model_validate)))


@resource.route_as(
    "post",
    "/models/<name>/versions",
    answers={202: JobAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[429],
    headers={202: ("Location", "Retry-After")},
    audit=Action.JOB_SUBMITTED,
)
def import_version(path: NamePath, body: ImportVersion) -> Response:
    """Import weights as a model's next version.

    The same as a job of kind `import`: a worker checks them against the architecture.
    """

    def work(session: Session) -> Reply:
        tenant_id = principal().tenant_id
        parts().admission.admit_job(session, tenant_id)
        describe(kind=JobKind.IMPORT, model=path.name)
        job = submit_import(session, tenant_id, model=path.name, **body.model_dump())
        return accepted(session, job)

    return once(work, Retry_After="1")


@resource.route_as(
    "get", "/models/<name>/versions", answers={200: ModelVersionPage}, scope=Scope.MODELS_READ
)
def list_model_versions(path: NamePath, query: PageQuery) -> Response:
    """List a model's versions, highest number first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_versions(
            session, tenant_id, path.name, after=query.after, limit=query.limit
        )
        aliases = summarise_model(session, tenant_id, path.name).aliases
        speeds = speeds_of(session, tenant_id, [row.id for row in rows])
    fields = page_fields(
        rows, has_more, lambda row: _show(path.name, row, aliases, speeds.get(row.id, []))
    )
    return send(ModelVersionPage(**fields))


@resource.route_as(
    "get",
    "/models/<name>/versions/<number>",
    answers={200: ModelVersionAnswer},
    scope=Scope.MODELS_READ,
)
def get_model_version(path: VersionPath) -> Response:
    """Read one version of a model."""
    with parts().db.tenant(principal().tenant_id) as session:
        return send(show_version(session, path.name, path.number))


@resource.route_as(
    "delete",
    "/models/<name>/versions/<number>",
    answers={200: ModelVersionAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_DELETED,
)
def delete_model_version(path: VersionPath) -> Response:
    """Give up an archived or failed version.

    Its weights are deleted a few minutes later, once no open job uses them; number, scores and
    lineage stay. Until then it can be restored. A failed one has no weights and is deleted at once.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        delete_version(session, tenant_id, path.name, path.number)
        record(session, target=f"{path.name}@{path.number}")
        return send(show_version(session, path.name, path.number))


def show_version(session: Session, name: str, number: int) -> ModelVersionAnswer:
    """A version of the caller's model as it is shown."""
    tenant_id = principal().tenant_id
    version = get_version(session, tenant_id, f"{name}@{number}")
    return _show(
        name,
        version,
        summarise_model(session, tenant_id, name).aliases,
        speeds_of(session, tenant_id, [version.id]).get(version.id, []),
    )


def _show(
    name: str, version: ModelVersion, aliases: Mapping[str, int], speeds: Sequence[DeviceSpeed]
) -> ModelVersionAnswer:
    fields = {
        field: getattr(version, field)
        for field in ModelVersionAnswer.model_fields
        if field not in ("model", "aliases", "speeds")
    }
    pointing = [alias for alias, number in aliases.items() if number == version.number]
    return ModelVersionAnswer(
        **fields,
        model=name,
        aliases=pointing,
        speeds=[SpeedAnswer.model_validate(speed) for speed in speeds],
    )
