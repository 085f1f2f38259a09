"""Control of a job: cancel, pause, resume, retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import describe, note_denial
from app.api.idempotency import once
from app.api.jobs import ACCEPTED, accepted
from app.api.parts import parts, principal
from app.api.replies import Reply
from app.api.resource import Resource, View
from app.api.schemas.job_answers import JobAnswer
from app.api.schemas.jobs import JobPath
from app.api.schemas.limits import limits_of
from app.api.schemas.retry import RetryJob
from app.audit.actions import Action
from app.jobs import cancel, pause, retry
from app.jobs.tables import Job
from app.tenants.scopes import Scope

resource = Resource("control", "Control", "Stop, hold, resume and retry jobs.")


def _verb(word: str, audit: Action, **more: Any) -> Callable[[View], View]:
    """Register a view that answers ``POST /v1/jobs/{job_id}/word`` with the job."""
    return resource.route_as(
        "post",
        f"/jobs/<job_id>/{word}",
        answers={202: JobAnswer},
        scope=Scope.JOBS_WRITE,
        headers={202: ACCEPTED},
        audit=audit,
        **more,
    )


@_verb("cancel", Action.JOB_CANCELLED)
def cancel_job(path: JobPath) -> Response:
    """Ask a job to stop.

    It is `cancelling` until no worker holds a part of it; what had finished stays. Asking
    again changes nothing.
    """
    return _control(cancel.cancel_job, path)


@_verb("pause", Action.JOB_PAUSED)
def pause_job(path: JobPath) -> Response:
    """Hold a job.

    Nothing more of it is begun until it is resumed; workers record what they have finished and
    give the rest back. Its deadline goes on. Asking again changes nothing.
    """
    return _control(pause.pause_job, path)


@_verb("resume", Action.JOB_RESUMED)
def resume_job(path: JobPath) -> Response:
    """Let a paused job go on.

    It goes on where it stood. A job that is not paused stays as it is.
    """
    return _control(pause.resume_job, path)


@_verb("retry", Action.JOB_RETRIED, problems=[429], body_optional=True)
def retry_job(path: JobPath, body: RetryJob) -> Response:
    """Retry what a job did not finish well.

    Makes a new job, whose `retry_of` names this one, over the images of a `predict` job that has
    ended which failed or were never touched. Without a body: all of them, as before. An export
    of the first job can include what its retries answered.
    """
    tenant_id = principal().tenant_id

    def submit(session: Session) -> Reply:
        parts().admission.admit_job(session, tenant_id)
        describe(retry_of=path.job_id)
        job = retry.submit_retry(
            session,
            tenant_id,
            path.job_id,
            which=body.which,
            model=body.model,
            options=body.options.model_dump(exclude_none=True),
            priority=body.priority,
            limits=limits_of(body.deadline, body.max_failed),
            metadata=body.metadata,
            key_id=principal().key_id,
        )
        return accepted(session, job)

    with note_denial():
        return once(submit, Retry_After="1")


def _control(change: Callable[[Session, str, str], Job], path: JobPath) -> Response:
    tenant_id = principal().tenant_id
    return once(
        lambda session: accepted(session, change(session, tenant_id, path.job_id)),
        Retry_After="1",
    )
