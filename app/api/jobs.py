"""Jobs: submit, list, poll."""

from __future__ import annotations

import hashlib
import json
from functools import cache, partial
from typing import Any

from flask import Response, request
from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.api.audit import describe, note_denial
from app.api.auth import require_scope
from app.api.idempotency import once
from app.api.parts import parts, principal
from app.api.release import release
from app.api.replies import Reply, as_json, json_response, page_fields, send
from app.api.resource import Resource
from app.api.schemas.job_answers import JobAnswer, JobPage
from app.api.schemas.jobs import (
    EvaluateJob,
    ExportJob,
    FinetuneJob,
    ImportJob,
    JobPath,
    JobsQuery,
    PredictJob,
    SearchJob,
    SubmitJob,
    WaitQuery,
)
from app.api.schemas.limits import limits_of
from app.api.views import retry_after_seconds, show_job, show_jobs, show_polled_job
from app.audit.actions import Action
from app.jobs.evaluate import submit_evaluate
from app.jobs.poll import glance_at_job, poll_job
from app.jobs.progress import list_jobs as page_jobs
from app.jobs.search import submit_search
from app.jobs.states import TERMINAL_JOB_STATES, JobKind, JobState
from app.jobs.submit import submit_export, submit_finetune, submit_import, submit_predict
from app.jobs.tables import Job
from app.jobs.training_time import check_training_minutes
from app.tenants.scopes import Scope
from app.training.start import spell_recipe

resource = Resource("jobs", "Jobs", "Submit work and watch it.")

SCOPE_OF_KIND = {
    JobKind.PREDICT: Scope.JOBS_WRITE,
    JobKind.EVALUATE: Scope.JOBS_WRITE,
    JobKind.FINETUNE: Scope.MODELS_WRITE,
    JobKind.SEARCH: Scope.MODELS_WRITE,
    JobKind.IMPORT: Scope.MODELS_WRITE,
    JobKind.EXPORT: Scope.EXPORTS,
}
ACCEPTED = ("Location", "Retry-After")


@resource.route_as(
    "post",
    "/jobs",
    answers={202: JobAnswer},
    problems=[404, 429],
    headers={202: ACCEPTED},
    audit=Action.JOB_SUBMITTED,
)
def submit_job(body: SubmitJob) -> Response:
    """Submit a job.

    The answer comes at once; the job's `links.self` tells how far it is.
    `predict` and `evaluate` need the scope `jobs:write`, `finetune`, `search` and `import` need
    `models:write`, `export` needs `exports`.
    """
    asked = body.root
    require_scope(SCOPE_OF_KIND[JobKind(asked.kind)])
    with note_denial():
        return once(lambda session: accepted(session, _submit(session, asked)), Retry_After="1")


def accepted(session: Session, job: Job) -> Reply:
    """The answer to a submission."""
    return Reply(202, as_json(show_job(session, job)), f"/v1/jobs/{job.id}")


def _submit(
    session: Session,
    asked: PredictJob | EvaluateJob | FinetuneJob | SearchJob | ImportJob | ExportJob,
) -> Job:
    tenant_id = principal().tenant_id
    parts().admission.admit_job(session, tenant_id)
    describe(kind=asked.kind, model=getattr(asked, "model", None))
    match asked:
        case PredictJob() | EvaluateJob():
            submit = submit_predict if isinstance(asked, PredictJob) else submit_evaluate
            return submit(
                session,
                tenant_id,
                source=asked.input.model_dump(exclude_none=True),
                model=asked.model,
                options=asked.options.model_dump(),
                own_bucket=parts().settings.bucket,
                locations=parts().settings.default_locations,
                priority=asked.priority,
                limits=limits_of(asked.deadline, asked.max_failed),
                metadata=asked.metadata,
                key_id=principal().key_id,
            )
        case FinetuneJob() | SearchJob():
            return _submit_training(session, tenant_id, asked)
        case ImportJob():
            return submit_import(
                session,
                tenant_id,
                model=asked.model,
                priority=asked.priority,
                limits=limits_of(asked.deadline),
                metadata=asked.metadata,
                **asked.options.model_dump(),
            )
        case ExportJob():
            describe(job=asked.input.job)
            return submit_export(
                session,
                tenant_id,
                job_id=asked.input.job,
                priority=asked.priority,
                limits=limits_of(asked.deadline),
                metadata=asked.metadata,
                **asked.options.model_dump(),
            )


def _submit_training(session: Session, tenant_id: str, asked: FinetuneJob | SearchJob) -> Job:
    # Moved by the worker when the training is good enough: this is who asked for it.
    describe(alias=asked.options.alias, dataset=asked.input.dataset)
    check_training_minutes(session, tenant_id, parts().admission.quotas(session, tenant_id))
    recipe = asked.options if isinstance(asked, FinetuneJob) else asked.options.recipe
    submit = (
        submit_finetune
        if isinstance(asked, FinetuneJob)
        else partial(submit_search, search=asked.options.search())
    )
    return submit(
        session,
        tenant_id,
        dataset=asked.input.dataset,
        model=asked.model,
        recipe=spell_recipe(session, tenant_id, recipe.given(), preset=recipe.preset),
        alias=asked.options.alias,
        priority=asked.priority,
        limits=limits_of(asked.deadline),
        metadata=asked.metadata,
    )


@resource.route_as("get", "/jobs", answers={200: JobPage}, scope=Scope.JOBS_READ)
def list_jobs(query: JobsQuery) -> Response:
    """List jobs, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_jobs(
            session,
            tenant_id,
            after=query.after,
            limit=query.limit,
            kind=JobKind(query.kind) if query.kind else None,
            state=JobState(query.state) if query.state else None,
        )
        shown = show_jobs(session, tenant_id, rows)
    return send(JobPage(**page_fields(shown, has_more, lambda job: job)))


@resource.route_as(
    "get",
    "/jobs/<job_id>",
    answers={200: JobAnswer, 304: None},
    scope=Scope.JOBS_READ,
    headers={200: ("ETag", "Retry-After"), 304: ("ETag", "Retry-After")},
    takes=["IfNoneMatch"],
)
def get_job(path: JobPath, query: WaitQuery) -> Response:
    """Poll a job.

    While the job is open, `Retry-After` says when to ask again. With `wait` the answer is held
    back: until the job differs from the ETag in `If-None-Match`, or, without that header,
    until it has ended.
    """
    here, tenant_id = parts(), principal().tenant_id
    # Compared weakly (RFC 9110, 13.1.2): a proxy that compresses marks our ETag as weak.
    known = request.if_none_match

    def look() -> _Look:
        # Nobody holds a connection while waiting.
        if known:
            glance = glance_at_job(here.db, tenant_id, path.job_id)
            etag = _etag(path.job_id, glance.version)
            if known.contains_weak(etag):
                return _Look(glance.job, etag)
        seen = poll_job(here.db, tenant_id, path.job_id)
        return _Look(seen.job, _etag(path.job_id, seen.version), show_polled_job(seen.job))

    def is_news(seen: _Look) -> bool:
        return seen.is_over or (bool(known) and seen.text is not None)

    seen = look()
    full = False

    def look_again() -> bool:
        nonlocal seen
        seen = look()
        return is_news(seen)

    if query.wait > 0 and not is_news(seen):
        with here.slots.take() as taken:
            full = not taken
            if taken:
                seconds = min(query.wait, here.settings.wait_max_seconds)
                here.slots.wait_until(look_again, seconds)
    response = seen.response()
    if full:
        response.headers["Retry-After"] = str(max(2, retry_after_seconds(seen.job) or 2))
    return response


class _Look:
    """A job at one moment; its text is None where the client has it already."""

    def __init__(self, job: Row[Any], etag: str, answer: JobAnswer | None = None) -> None:
        self.job = job
        self.is_over = job.state in TERMINAL_JOB_STATES
        self.etag = etag
        # Sorted, so that the same row gives the same bytes and the ETag may be a strong one.
        self.text = (
            json.dumps(as_json(answer), sort_keys=True, ensure_ascii=False) if answer else None
        )

    def response(self) -> Response:
        response = Response(status=304) if self.text is None else json_response(self.text)
        response.set_etag(self.etag)
        response.headers["Cache-Control"] = "private, no-cache"
        seconds = retry_after_seconds(self.job)
        if seconds is not None:
            response.headers["Retry-After"] = str(seconds)
        return response


def _etag(job_id: str, version: str) -> str:
    """Of what an answer is made of, so that "nothing new" is told without making one.

    All that an answer shows is in the job's row, or a name that never changes.
    """
    source = f"{_manner()} {job_id} {version}"
    return hashlib.sha256(source.encode()).hexdigest()[:32]


@cache
def _manner() -> str:
    """How this release shows a job; another release may show the same row in another way."""
    schema = json.dumps(JobAnswer.model_json_schema(mode="serialization"), sort_keys=True)
    return f"{release()} {hashlib.sha256(schema.encode()).hexdigest()}"
