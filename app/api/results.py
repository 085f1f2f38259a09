"""What jobs gave: results, errors, metrics, trials, files."""

from __future__ import annotations

from typing import Literal

from flask import Response

from app.api.parts import parts, principal
from app.api.replies import page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.job_answers import MetricAnswer, MetricPage, ResultPage
from app.api.schemas.jobs import ErrorsQuery, JobPath, MetricsQuery, ResultsQuery
from app.api.schemas.search import TrialPage, TrialsQuery
from app.api.schemas.service import ArtifactPage
from app.api.views import show_artifact, show_result, show_trial
from app.jobs.artifacts import list_artifacts
from app.jobs.progress import get_job
from app.jobs.results import page_results
from app.jobs.trials import page_trials
from app.tenants.scopes import Scope
from app.training.metrics import read_metrics

resource = Resource(
    "results", "Results", "What jobs gave: results, errors, metrics, trials, files."
)


@resource.route_as(
    "get", "/jobs/<job_id>/results", answers={200: ResultPage}, scope=Scope.JOBS_READ
)
def list_results(path: JobPath, query: ResultsQuery) -> Response:
    """Read a job's results page by page.

    Of a closed job in the order of the input. Of an open one in the order in which they came
    in, so nothing is missed by reading on from `next_cursor`.
    """
    return _page(path.job_id, query.after, query.limit, query.only)


@resource.route_as("get", "/jobs/<job_id>/errors", answers={200: ResultPage}, scope=Scope.JOBS_READ)
def list_errors(path: JobPath, query: ErrorsQuery) -> Response:
    """Read a job's failed items page by page."""
    return _page(path.job_id, query.after, query.limit, "failed")


def _page(
    job_id: str, cursor: str | None, limit: int, only: Literal["all", "succeeded", "failed"]
) -> Response:
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        job = get_job(session, tenant_id, job_id)
        page = page_results(session, tenant_id, job, cursor=cursor, limit=limit, only=only)
        by_seq = (page.cursor or "").startswith("s")
        fields = page_fields(
            page.items,
            page.has_more,
            show_result,
            lambda item: f"s.{item.seq}.{item.ordinal}" if by_seq else f"o.{item.ordinal}",
        )
    return send(ResultPage(**fields, next_cursor=page.cursor))


@resource.route_as(
    "get", "/jobs/<job_id>/metrics", answers={200: MetricPage}, scope=Scope.JOBS_READ
)
def list_metrics(path: JobPath, query: MetricsQuery) -> Response:
    """Read the numbers that a job logged, by step and name."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        get_job(session, tenant_id, path.job_id)
        points, has_more = read_metrics(
            session,
            tenant_id,
            path.job_id,
            query.name,
            after=query.after,
            limit=query.limit,
        )
    return send(MetricPage(**page_fields(points, has_more, MetricAnswer.model_validate)))


@resource.route_as("get", "/jobs/<job_id>/trials", answers={200: TrialPage}, scope=Scope.JOBS_READ)
def list_trials(path: JobPath, query: TrialsQuery) -> Response:
    """Read the trials of a search that were begun, by number; other jobs have none."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        get_job(session, tenant_id, path.job_id)
        rows, has_more = page_trials(
            session,
            tenant_id,
            path.job_id,
            after=int(query.after) if query.after is not None else None,
            limit=query.limit,
        )
    return send(
        TrialPage(**page_fields(rows, has_more, show_trial, lambda trial: str(trial.number)))
    )


@resource.route_as(
    "get", "/jobs/<job_id>/artifacts", answers={200: ArtifactPage}, scope=Scope.JOBS_READ
)
def list_job_artifacts(path: JobPath, query: PageQuery) -> Response:
    """List the files that a job made, oldest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        get_job(session, tenant_id, path.job_id)
        rows, has_more = list_artifacts(
            session, tenant_id, path.job_id, after=query.after, limit=query.limit
        )
    return send(ArtifactPage(**page_fields(rows, has_more, show_artifact)))
