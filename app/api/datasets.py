"""Datasets: freeze labelled uploads into versions."""

from __future__ import annotations

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import describe
from app.api.idempotency import once
from app.api.parts import parts, principal
from app.api.replies import Reply, as_json, page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.library import (
    DatasetAnswer,
    DatasetFacts,
    DatasetPage,
    DatasetVersionAnswer,
    DatasetVersionPage,
    FreezeDataset,
    NamePath,
    VersionPath,
)
from app.audit.actions import Action
from app.datasets.freeze import freeze_dataset as freeze
from app.datasets.resolve import list_dataset_versions as page_versions
from app.datasets.resolve import list_datasets as page_datasets
from app.datasets.resolve import resolve_dataset
from app.datasets.tables import DatasetVersion
from app.tenants.scopes import Scope

resource = Resource("datasets", "Datasets", "Labelled images, frozen and hashed.")


@resource.route_as(
    "post",
    "/datasets",
    answers={201: DatasetVersionAnswer},
    scope=Scope.JOBS_WRITE,
    problems=[404],
    headers={201: ("Location",)},
    audit=Action.DATASET_FROZEN,
)
def freeze_dataset(body: FreezeDataset) -> Response:
    """Freeze the labelled images of an upload.

    The same images, labels and splits give the version that holds them already.
    """

    def work(session: Session) -> Reply:
        version = freeze(
            session,
            principal().tenant_id,
            name=body.name,
            upload_id=body.input.upload,
            fractions=(body.fractions.train, body.fractions.validation, body.fractions.test),
            seed=body.seed,
            skip_unlabelled=body.skip_unlabelled,
            labels=body.labels,
        )
        describe(name=body.name, number=version.number, upload=body.input.upload)
        where = f"/v1/datasets/{body.name}/versions/{version.number}"
        return Reply(201, as_json(_show(body.name, version)), where)

    return once(work)


@resource.route_as("get", "/datasets", answers={200: DatasetPage}, scope=Scope.JOBS_READ)
def list_datasets(query: PageQuery) -> Response:
    """List datasets, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_datasets(session, tenant_id, after=query.after, limit=query.limit)
    return send(DatasetPage(**page_fields(rows, has_more, DatasetAnswer.model_validate)))


@resource.route_as(
    "get", "/datasets/<name>/versions", answers={200: DatasetVersionPage}, scope=Scope.JOBS_READ
)
def list_dataset_versions(path: NamePath, query: PageQuery) -> Response:
    """List a dataset's versions, highest number first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_versions(
            session, tenant_id, path.name, after=query.after, limit=query.limit
        )
    fields = page_fields(rows, has_more, lambda row: _show(path.name, row))
    return send(DatasetVersionPage(**fields))


@resource.route_as(
    "get",
    "/datasets/<name>/versions/<number>",
    answers={200: DatasetVersionAnswer},
    scope=Scope.JOBS_READ,
)
def get_dataset_version(path: VersionPath) -> Response:
    """Read one version of a dataset."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        version = resolve_dataset(session, tenant_id, f"{path.name}@{path.number}")
    return send(_show(path.name, version))


def _show(name: str, version: DatasetVersion) -> DatasetVersionAnswer:
    return DatasetVersionAnswer(
        id=version.id,
        name=name,
        number=version.number,
        content_sha256=version.content_sha256,
        classes=version.classes,
        sample_count=version.sample_count,
        counts=version.counts,
        source=version.source,
        facts=DatasetFacts.model_validate(version.facts) if version.facts else None,
        created_at=version.created_at,
    )
