"""What becomes of the version that a job made: its alias, and the best trial of a search."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.datasets.tables import Split
from app.jobs.tables import Job
from app.log import get_logger
from app.models.evaluations import record_evaluation
from app.models.promote import settle_alias
from app.models.register import accept_version
from app.models.resolve import get_version

log = get_logger(__name__)


def settle_job_alias(
    session: Session, tenant_id: str, job_id: str, *, model: str, alias: str, version_id: str
) -> None:
    """Move the alias to the job's version, unless a gate keeps it.

    Where there is a gate, the job's result says what it found under ``promotion``.
    """
    verdict = settle_alias(session, tenant_id, model, alias, version_id)
    if verdict is None:
        return
    log.info("gate_asked", alias=alias, passed=verdict.passed, reason=verdict.reason)
    _add_result(session, tenant_id, job_id, {"promotion": {"alias": alias, **verdict.as_dict()}})


def conclude_search(session: Session, tenant_id: str, job_id: str, *, is_whole: bool) -> bool:
    """Make the version ready that the best trial filled; False where none came to its end.

    The alias moves only where the search ``is_whole``, rather than stopped or failed.
    """
    job = session.execute(
        select(Job.model_version_id, Job.dataset_version_id, Job.options, Job.result).where(
            Job.id == job_id, Job.tenant_id == tenant_id
        )
    ).one()
    version_id = str(job.model_version_id)
    if not accept_version(session, tenant_id, version_id):
        return False
    _add_result(session, tenant_id, job_id, {"model_version": version_id})
    record_evaluation(
        session,
        tenant_id,
        version_id=version_id,
        dataset_version_id=job.dataset_version_id,
        split=Split.TEST,
        job_id=job_id,
        items=job.result["test_images"],
        scores=get_version(session, tenant_id, version_id).scores or {},
    )
    if is_whole and job.options["alias"]:
        settle_job_alias(
            session,
            tenant_id,
            job_id,
            model=job.options["model"],
            alias=job.options["alias"],
            version_id=version_id,
        )
    log.info("search_concluded", job=job_id, version=version_id, trial=job.result["trial"])
    return True


def _add_result(session: Session, tenant_id: str, job_id: str, more: dict[str, Any]) -> None:
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.tenant_id == tenant_id)
        .values(result=Job.result.concat(more))
        .execution_options(synchronize_session=False)
    )
