"""``darkroom cancel | pause | resume | retry``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import answer
from app.cli.follow import finish_submit
from app.cli.inputs import read_pairs
from app.cli.limits import DeadlineText, MaxFailedTexts, read_deadline, read_max_failed
from app.cli.options import (
    Activation,
    JobId,
    MetadataTexts,
    Threshold,
    Timeout,
    TopK,
    Wait,
    Watch,
)


class RetryOf(StrEnum):
    """Which images of a job to try again."""

    ALL = "all"
    FAILED = "failed"
    UNFINISHED = "unfinished"


def cancel(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Cancel a job; what had finished stays."""
    with connect(context) as darkroom:
        job = darkroom.jobs.cancel(job_id)
    answer(job.raw, f"{job.id} {job.state}", as_json=as_json)


def pause(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Hold a job: nothing more of it is begun until `darkroom resume`."""
    with connect(context) as darkroom:
        job = darkroom.jobs.pause(job_id)
    answer(job.raw, f"{job.id} {job.state}", as_json=as_json)


def resume(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Let a paused job go on where it stood."""
    with connect(context) as darkroom:
        job = darkroom.jobs.resume(job_id)
    answer(job.raw, f"{job.id} {job.state}", as_json=as_json)


def retry(
    context: typer.Context,
    job_id: JobId,
    which: Annotated[
        RetryOf, typer.Option(help="Images that failed, that were never touched, or all.")
    ] = RetryOf.ALL,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Another model or version.", show_default=False),
    ] = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    activation: Activation = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Of your jobs, higher goes first.")
    ] = None,
    deadline: DeadlineText = None,
    max_failed: MaxFailedTexts = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Try again what a job did not finish well, as a new job.

    What is not given is as in the first job; only deadline and failure budget are not taken over.
    `darkroom export JOB --include-retries` puts both together.
    """
    pairs = read_pairs(metadata or ())
    until, budget = read_deadline(deadline), read_max_failed(max_failed)
    with connect(context) as darkroom:
        job = darkroom.jobs.retry(
            job_id,
            which=which.value,
            model=model,
            top_k=top_k,
            threshold=threshold,
            activation=activation,
            priority=priority,
            deadline=until,
            max_failed=budget,
            metadata=pairs or None,
        )
        finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)
