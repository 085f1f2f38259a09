"""How rows are shown: the one place where columns become fields of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.api.schemas.job_answers import (
    ClassScore,
    Counts,
    JobAnswer,
    JobLinks,
    Named,
    Progress,
    ResultAnswer,
)
from app.api.schemas.limits import MaxFailedAnswer
from app.api.schemas.search import TrialAnswer
from app.api.schemas.service import ArtifactAnswer
from app.api.schemas.uploads import UploadAnswer, UploadLinks
from app.datasets.resolve import names_of_dataset_versions
from app.jobs.progress import counts, rate_and_eta
from app.jobs.states import TERMINAL_JOB_STATES, JobKind, JobState
from app.jobs.tables import Artifact, Item, Job
from app.models.resolve import names_of_versions
from app.training.search import Trial
from app.uploads.tables import Upload

_WITHOUT_ITEMS = (JobKind.FINETUNE, JobKind.IMPORT, JobKind.EXPORT)


def show_job(session: Session, job: Job) -> JobAnswer:
    """A job, with the names of the versions it uses."""
    return show_jobs(session, job.tenant_id, [job])[0]


def show_jobs(session: Session, tenant_id: str, jobs: Sequence[Job]) -> list[JobAnswer]:
    """Jobs in their order; two look-ups for the names, however many they are."""
    models = names_of_versions(
        session, tenant_id, {job.model_version_id for job in jobs if job.model_version_id}
    )
    datasets = names_of_dataset_versions(
        session, tenant_id, {job.dataset_version_id for job in jobs if job.dataset_version_id}
    )
    return [
        _show_job(
            job,
            models.get(job.model_version_id or "") or (job.shared_version or {}).get("reference"),
            datasets.get(job.dataset_version_id or ""),
        )
        for job in jobs
    ]


def show_polled_job(job: Row[Any]) -> JobAnswer:
    """A job as :func:`app.jobs.poll.poll_job` read it."""
    return _show_job(job, job.model, job.dataset)


def _show_job(job: Job | Row[Any], model: str | None, dataset: str | None) -> JobAnswer:
    rate, eta = rate_and_eta(job)
    here = f"/v1/jobs/{job.id}"
    source = job.input
    if "items" in source:
        # A poll must not carry a thousand locations that the client sent itself.
        source = {"items_count": len(source["items"])}
    return JobAnswer.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "priority": job.priority,
            "input": source,
            "options": job.options,
            "metadata": job.metadata_,
            "model_version": _named(job.model_version_id or job.shared_version_id, model),
            "dataset_version": _named(job.dataset_version_id, dataset),
            "deadline_at": job.deadline_at,
            "max_failed": _max_failed(job),
            "retry_of": job.retry_of,
            "counts": Counts(**counts(job)),
            "progress": _progress(job),
            "images_per_second": None if job.kind == JobKind.SEARCH else rate,
            "eta_seconds": eta,
            "result": job.result,
            "error": job.error,
            "stop_reason": job.stop_reason,
            "created_at": job.created_at,
            "queued_at": job.queued_at,
            "running_at": job.running_at,
            "finalizing_at": job.finalizing_at,
            "paused_at": job.paused_at,
            "cancelling_at": job.cancelling_at,
            "ended_at": job.ended_at,
            "updated_at": job.updated_at,
            "links": JobLinks(
                self=here,
                results=f"{here}/results",
                errors=f"{here}/errors",
                metrics=f"{here}/metrics",
                trials=f"{here}/trials",
                events=f"{here}/events",
                artifacts=f"{here}/artifacts",
                cancel=f"{here}/cancel",
                pause=f"{here}/pause",
                resume=f"{here}/resume",
                retry=f"{here}/retry",
            ),
        }
    )


def retry_after_seconds(job: Job | Row[Any]) -> int | None:
    """When to ask again: a tenth of what is left, 1 s at least; None once the job has ended."""
    if job.state in TERMINAL_JOB_STATES:
        return None
    _, eta = rate_and_eta(job)
    return 1 if eta is None else int(min(max(eta / 10, 1), 15))


def show_result(item: Item) -> ResultAnswer:
    """How one item ended."""
    prediction = None
    if item.prediction is not None:
        prediction = [ClassScore(class_=pair[0], score=pair[1]) for pair in item.prediction]
    return ResultAnswer.model_validate(
        {
            "ordinal": item.ordinal,
            "custom_id": item.custom_id,
            "source": item.source,
            "state": item.state,
            "prediction": prediction,
            "error": item.error,
            "label": item.label,
            "metadata": item.metadata_,
        }
    )


def show_trial(trial: Trial) -> TrialAnswer:
    """One recipe that was tried."""
    return TrialAnswer.model_validate(asdict(trial))


def show_upload(upload: Upload) -> UploadAnswer:
    """An upload."""
    fields = {name: getattr(upload, name) for name in UploadAnswer.model_fields if name != "links"}
    job = f"/v1/jobs/{upload.job_id}" if upload.job_id else None
    return UploadAnswer(**fields, links=UploadLinks(self=f"/v1/uploads/{upload.id}", job=job))


def show_artifact(artifact: Artifact) -> ArtifactAnswer:
    """A file that a job made."""
    return ArtifactAnswer(
        id=artifact.id,
        job_id=artifact.job_id,
        name=artifact.name,
        media_type=artifact.media_type,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        created_at=artifact.created_at,
        content=f"/v1/artifacts/{artifact.id}/content",
    )


def _named(version_id: str | None, reference: str | None) -> Named | None:
    """``("mdv_…", "digits@3")`` as an answer shows it."""
    if version_id is None or reference is None:
        return None
    name, _, number = reference.rpartition("@")
    return Named(id=version_id, name=name, number=int(number))


def _max_failed(job: Job | Row[Any]) -> MaxFailedAnswer | None:
    if job.max_failed_items is None and job.max_failed_fraction is None:
        return None
    return MaxFailedAnswer(items=job.max_failed_items, fraction=job.max_failed_fraction)


def _progress(job: Job | Row[Any]) -> Progress:
    if job.progress is not None:
        step, steps = job.progress.get("step"), job.progress.get("steps")
        fraction = min(step / steps, 1.0) if step is not None and steps else None
        unit = job.progress.get("unit")
    elif job.kind in _WITHOUT_ITEMS:
        fraction = step = steps = unit = None
    else:
        done = counts(job)["done"]
        sized = job.sealed_at is not None and job.total > 0
        step, steps = done, (job.total if sized else None)
        fraction = done / job.total if sized else None
        unit = "trial" if job.kind == JobKind.SEARCH else "item"
    if job.state in (JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED):
        fraction = 1.0
    return Progress(fraction=fraction, step=step, steps=steps, unit=unit)
