"""Registers versions of models: announced with a job, completed or failed by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Required, TypedDict, Unpack

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.errors import ConflictError, NotFoundError
from app.ids import MODEL, MODEL_VERSION, new_id
from app.models.spec import ModelSpec
from app.models.states import VERSION_SOURCES, VersionState
from app.models.tables import Model, ModelVersion
from app.names import check_name


def announce_version(
    session: Session,
    tenant_id: str,
    *,
    model: str,
    arch: str,
    arch_options: Mapping[str, Any],
    lineage: Mapping[str, Any],
    job_id: str | None = None,
) -> ModelVersion:
    """Take the next number of the model for a version that a job will bring; it is pending.

    A model is made with its first version. The model's row stays locked to the end of the
    transaction, so that two announced at once get different numbers. The job's row must be
    flushed before.

    Raises:
        InvalidInputError: ``model_name_invalid``.
    """
    check_name(model, "model")
    session.execute(
        insert(Model)
        .values(id=new_id(MODEL), tenant_id=tenant_id, name=model)
        .on_conflict_do_nothing(index_elements=[Model.tenant_id, Model.name])
    )
    # Not against the key, which a job holds that makes a version ready and moves an alias next.
    model_id = session.scalars(
        select(Model.id)
        .where(Model.tenant_id == tenant_id, Model.name == model)
        .with_for_update(key_share=True)
    ).one()
    # A statement of its own: only what starts after the lock was granted sees the last number.
    last = session.scalar(
        select(func.max(ModelVersion.number)).where(
            ModelVersion.tenant_id == tenant_id, ModelVersion.model_id == model_id
        )
    )
    version = ModelVersion(
        id=new_id(MODEL_VERSION),
        tenant_id=tenant_id,
        model_id=model_id,
        number=(last or 0) + 1,
        state=VersionState.PENDING,
        arch=arch,
        arch_options=dict(arch_options),
        lineage=dict(lineage),
        job_id=job_id,
    )
    session.add(version)
    session.flush()
    session.refresh(version)
    return version


class VersionContent(TypedDict, total=False):
    """What a version is once its weights are stored."""

    spec: Required[ModelSpec]
    weights_key: Required[str]
    weights_sha256: Required[str]
    weights_bytes: Required[int]
    parameter_count: Required[int]
    macs: int | None
    #: Of weights that lie sealed, the digest of their object.
    sealed_sha256: str | None
    scores: Mapping[str, Any] | None
    #: Added to what was announced.
    lineage: Mapping[str, Any] | None


def complete_version(
    session: Session,
    tenant_id: str,
    version_id: str,
    **content: Unpack[VersionContent],
) -> None:
    """Make a pending version ready: weights stored and checked, nothing changes after this.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_pending``: the version is ready, archived or failed already.
    """
    fill_version(session, tenant_id, version_id, **content)
    if accept_version(session, tenant_id, version_id):
        return
    state = session.scalar(
        select(ModelVersion.state).where(
            ModelVersion.tenant_id == tenant_id, ModelVersion.id == version_id
        )
    )
    if state is None:
        raise NotFoundError(f"there is no model version {version_id!r}", code="model_not_found")
    raise ConflictError(
        f"model version {version_id!r} is {state}, not pending", code="model_not_pending"
    )


def fill_version(
    session: Session,
    tenant_id: str,
    version_id: str,
    **content: Unpack[VersionContent],
) -> str | None:
    """Write into a pending version what it is, as for :func:`complete_version`; it stays pending.

    What it was filled with before is replaced; the answer is the key of those weights, if any.
    """
    spec, scores = content["spec"], content.get("scores")
    here = [
        ModelVersion.tenant_id == tenant_id,
        ModelVersion.id == version_id,
        ModelVersion.state == VersionState.PENDING,
    ]
    before = session.scalar(select(ModelVersion.weights_key).where(*here).with_for_update())
    session.execute(
        update(ModelVersion)
        .where(*here)
        .values(
            arch=spec.arch,
            arch_options=dict(spec.arch_options),
            classes=list(spec.classes),
            preprocess=spec.preprocess.as_dict(),
            preprocess_sha256=spec.preprocess.digest,
            weights_key=content["weights_key"],
            weights_sha256=content["weights_sha256"],
            weights_bytes=content["weights_bytes"],
            sealed_sha256=content.get("sealed_sha256"),
            parameter_count=content["parameter_count"],
            macs=content.get("macs"),
            scores=None if scores is None else dict(scores),
            lineage=ModelVersion.lineage.concat(dict(content.get("lineage") or {})),
        )
        .execution_options(synchronize_session=False)
    )
    return before


def accept_version(session: Session, tenant_id: str, version_id: str) -> bool:
    """Make a pending version ready that was filled; False where it was not, or is not pending."""
    return bool(
        transition(
            session,
            ModelVersion,
            VersionState.READY,
            # Not an archived one: that becomes ready again with the weights that it has.
            sources={VersionState.PENDING},
            where=[
                ModelVersion.tenant_id == tenant_id,
                ModelVersion.id == version_id,
                ModelVersion.weights_key.is_not(None),
            ],
        )
    )


def fail_version(session: Session, tenant_id: str, job_id: str) -> None:
    """Mark the versions that a job announced and did not complete as failed."""
    transition(
        session,
        ModelVersion,
        VersionState.FAILED,
        sources=VERSION_SOURCES[VersionState.FAILED],
        where=[ModelVersion.tenant_id == tenant_id, ModelVersion.job_id == job_id],
    )
