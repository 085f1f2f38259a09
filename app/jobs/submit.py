"""Submitting: a job, and the chunk that starts it, in the caller's one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.resolve import resolve_dataset
from app.errors import InvalidInputError, NotFoundError
from app.jobs.add import add_job
from app.jobs.limits import NO_LIMITS, Limits
from app.jobs.progress import get_job
from app.jobs.query_budget import check_budget
from app.jobs.retried import list_retries
from app.jobs.source import check_source
from app.jobs.states import ChunkTask, JobKind
from app.jobs.tables import Job
from app.locations import Locations
from app.models.architectures import find_architecture
from app.models.register import announce_version
from app.models.shared import choose_version
from app.models.spec import PreprocessSpec
from app.training.check import DatasetFacts, check_dataset
from app.training.recipe import TrainingRecipe
from app.training.start import settle_start
from app.uploads.tables import Upload, UploadKind, UploadState

ExportFormat = Literal["jsonl", "csv", "parquet"]


def submit_predict(
    session: Session,
    tenant_id: str,
    *,
    source: Mapping[str, Any],
    model: str,
    options: Mapping[str, Any],
    own_bucket: str,
    locations: Locations,
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
    key_id: str | None = None,
) -> Job:
    """Submit the recognition of every item of ``source`` by one model version.

    The version is resolved now: an alias that moves later does not change this job.
    ``options`` are the fields of the pipeline's predict options, complete; the items count
    against the query budget of the key, and of the grant where ``model`` is another tenant's.
    ``locations`` are those of a tenant that has none of its own.

    Raises:
        ForbiddenError: ``location_not_allowed``.
        TooManyError: ``query_budget_spent``.
    """
    labelled = source.get("dataset") is not None
    version = choose_version(session, tenant_id, model, labelled=labelled)
    kept, dataset_version_id = check_source(
        session, tenant_id, source, own_bucket=own_bucket, locations=locations
    )
    check_budget(session, tenant_id, key_id, version.shared, kept)
    return add_job(
        session,
        tenant_id,
        JobKind.PREDICT,
        first=ChunkTask.PLAN,
        input=kept,
        options=dict(options),
        dataset_version_id=dataset_version_id,
        key_id=key_id,
        **version.columns,
        priority=priority,
        limits=limits,
        metadata=metadata,
    )


def submit_ingest(session: Session, tenant_id: str, upload_id: str) -> Job:
    """Submit the unpacking of an archive whose bytes are all stored; binds upload and job."""
    upload = session.scalar(
        select(Upload).where(Upload.id == upload_id, Upload.tenant_id == tenant_id)
    )
    if upload is None:
        raise NotFoundError(f"no upload {upload_id}", code="upload_not_found")
    job = add_job(
        session,
        tenant_id,
        JobKind.INGEST,
        first=ChunkTask.INGEST,
        input={"upload": upload_id},
        sealed=False,
    )
    upload.job_id = job.id
    session.flush()
    return job


def submit_finetune(
    session: Session,
    tenant_id: str,
    *,
    dataset: str,
    model: str,
    recipe: TrainingRecipe,
    alias: str | None = "production",
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
) -> Job:
    """Submit the training of a new version of ``model`` on a dataset version.

    Raises:
        InvalidInputError: the dataset cannot teach or judge, see
            :func:`app.training.check.check_dataset`, or ``start_mismatch``.
        NotFoundError: no such dataset, or no version to start from.
    """
    data = resolve_dataset(session, tenant_id, dataset)
    check_dataset(DatasetFacts(dataset, data.classes, data.counts), recipe)
    recipe = settle_start(session, tenant_id, recipe)
    job = add_job(
        session,
        tenant_id,
        JobKind.FINETUNE,
        first=ChunkTask.FINETUNE,
        input={"dataset": data.id},
        options={"recipe": recipe.as_dict(), "alias": alias, "model": model},
        dataset_version_id=data.id,
        priority=priority,
        limits=limits,
        metadata=metadata,
    )
    announce_trained(session, job, model=model, recipe=recipe)
    session.flush()
    return job


def announce_trained(session: Session, job: Job, *, model: str, recipe: TrainingRecipe) -> None:
    """Announce the version of ``model`` that the job is to make by this recipe."""
    version = announce_version(
        session,
        job.tenant_id,
        model=model,
        arch=recipe.arch,
        arch_options=recipe.arch_options,
        lineage={
            "job": job.id,
            "dataset_version": job.dataset_version_id,
            "recipe": recipe.as_dict(),
            **({"parent": recipe.start} if recipe.start is not None else {}),
        },
        job_id=job.id,
    )
    job.model_version_id = version.id


def submit_import(
    session: Session,
    tenant_id: str,
    *,
    model: str,
    arch: str,
    weights: str,
    classes: Sequence[str] | Literal["imagenet"],
    alias: str | None = "production",
    preprocess: Mapping[str, Any] | None = None,
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
) -> Job:
    """Submit the check and registration of weights as a new version of ``model``.

    ``weights`` is an upload of kind weights, or ``torchvision:NAME`` for weights that the
    worker fetches through torchvision's own loader. ``preprocess`` (fields of
    :class:`PreprocessSpec`) defaults to the architecture's own.

    Raises:
        InvalidInputError: there is no such architecture, the preprocessing is not valid, or the
            upload became a version already.
        NotFoundError: no such upload.
    """
    find_architecture(arch)
    if preprocess is not None:
        try:
            # As it is kept, without what stands at its default.
            preprocess = PreprocessSpec.from_dict(preprocess).as_dict()
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"preprocess: {error}", code="preprocess_invalid") from None
    if not weights.startswith("torchvision:"):
        _require_weights(session, tenant_id, weights)
    job = add_job(
        session,
        tenant_id,
        JobKind.IMPORT,
        first=ChunkTask.IMPORT,
        input={"weights": weights},
        options={
            "arch": arch,
            "classes": classes if classes == "imagenet" else list(classes),
            "alias": alias,
            "model": model,
            "preprocess": dict(preprocess) if preprocess is not None else None,
        },
        priority=priority,
        limits=limits,
        metadata=metadata,
    )
    version = announce_version(
        session,
        tenant_id,
        model=model,
        arch=arch,
        arch_options={},
        lineage={"job": job.id, "weights": weights},
        job_id=job.id,
    )
    job.model_version_id = version.id
    session.flush()
    return job


def submit_export(
    session: Session,
    tenant_id: str,
    *,
    job_id: str,
    format: ExportFormat,  # noqa: A002  (the word that users see)
    only: Literal["all", "succeeded", "failed"] = "all",
    include_retries: bool = False,
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
) -> Job:
    """Submit the writing of a job's results to a file, with those of its retries if wanted.

    Raises:
        NotFoundError: no such job.
        InvalidInputError: the job is of a kind that has no results, or was retried more often
            than can be merged.
    """
    source = get_job(session, tenant_id, job_id)
    if source.kind != JobKind.PREDICT:
        raise InvalidInputError(
            f"job {job_id} is of kind {source.kind}; only predict jobs have results to export",
            code="not_exportable",
        )
    if include_retries:
        list_retries(session, tenant_id, job_id)
    return add_job(
        session,
        tenant_id,
        JobKind.EXPORT,
        first=ChunkTask.EXPORT,
        input={"job": job_id},
        options={"format": format, "only": only, "include_retries": include_retries},
        model_version_id=source.model_version_id,
        shared_version_id=source.shared_version_id,
        shared_version=source.shared_version,
        priority=priority,
        limits=limits,
        metadata=metadata,
    )


def _require_weights(session: Session, tenant_id: str, upload_id: str) -> None:
    upload = session.scalar(
        select(Upload).where(Upload.id == upload_id, Upload.tenant_id == tenant_id)
    )
    if upload is None:
        raise NotFoundError(f"no upload {upload_id}", code="upload_not_found")
    if upload.state == UploadState.IMPORTED:
        raise upload_imported(upload_id)
    if upload.kind != UploadKind.WEIGHTS or upload.state != UploadState.READY:
        raise InvalidInputError(
            f"upload {upload_id} is not a complete weights file", code="not_weights"
        )


def upload_imported(upload_id: str) -> InvalidInputError:
    """What an import of weights hears whose file is gone since it became a version."""
    return InvalidInputError(
        f"upload {upload_id} became a model version, and the file that was sent is deleted; send "
        "it again to import it once more",
        code="upload_imported",
    )
