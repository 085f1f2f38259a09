"""Control of a job: cancel, pause, resume."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response
from sqlalchemy.orm import Session

from app.api.idempotency import once
from app.api.jobs import ACCEPTED, accepted
from app.api.parts import principal
from app.api.resource import Resource
from app.api.schemas.job_answers import JobAnswer
from app.api.schemas.jobs import JobPath
from app.jobs import cancel, pause
from app.jobs.tables import Job
from app.tenants.scopes import Scope

resource = Resource("control", "Control", "Stop, hold, resume and retry jobs.")


@resource.route_as(
    "post",
    "/jobs/<job_id>/cancel",
    answers={202: JobAnswer},
    scope=Scope.JOBS_WRITE,
    headers={202: ACCEPTED},
)
def cancel_job(path: JobPath) -> Response:
    """Ask a job to stop.

    It is `cancelling` until no worker holds a part of it; what had finished stays. Asking
    again changes nothing.
    """
    return _control(cancel.cancel_job, path)


@resource.route_as(
    "post",
    "/jobs/<job_id>/pause",
    answers={202: JobAnswer},
    scope=Scope.JOBS_WRITE,
    headers={202: ACCEPTED},
)
def pause_job(path: JobPath) -> Response:
    """Hold a job.

    Nothing more of it is begun until it is resumed; workers record what they have finished and
    give the rest back. Its deadline goes on. Asking again changes nothing.
    """
    return _control(pause.pause_job, path)


@resource.route_as(
    "post",
    "/jobs/<job_id>/resume",
    answers={202: JobAnswer},
    scope=Scope.JOBS_WRITE,
    headers={202: ACCEPTED},
)
def resume_job(path: JobPath) -> Response:
    """Let a paused job go on.

    It goes on where it stood. A job that is not paused stays as it is.
    """
    return _control(pause.resume_job, path)


def _control(change: Callable[[Session, str, str], Job], path: JobPath) -> Response:
    tenant_id = principal().tenant_id
    return once(
        lambda session: accepted(session, change(session, tenant_id, path.job_id)),
        Retry_After="1",
    )
