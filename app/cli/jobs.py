"""``darkroom jobs | job | watch | results | export``."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import (
    note,
    print_fields,
    print_json,
    print_json_lines,
    print_table,
    say,
    state_text,
)
from app.cli.exits import EXIT_OF_STATE, Exit
from app.cli.follow import finish, follow
from app.cli.inputs import check_output
from app.cli.options import Force, JobId, Timeout
from app.cli.progress import TransferBar
from app.cli.words import (
    ago_text,
    bytes_text,
    duration_text,
    pairs_text,
    rate_text,
    score_text,
    without_recipe,
)

if TYPE_CHECKING:
    from app.client.values import Job, Named, Result


class Only(StrEnum):
    """Which items to take."""

    ALL = "all"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Format(StrEnum):
    """What an export looks like."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def list_jobs(
    context: typer.Context,
    kind: Annotated[
        str | None,
        typer.Option(help="predict, evaluate, finetune, search, export, ingest, import."),
    ] = None,
    state: Annotated[str | None, typer.Option(help="Such as running or failed.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Jobs to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connect(context) as darkroom:
        jobs = list(islice(darkroom.jobs.list(kind=kind, state=state), limit))
    if as_json:
        print_json([job.raw for job in jobs])
        return
    print_table(
        ("job", "kind", "state", "done", "failed", "rate", "took", "submitted"),
        [
            (
                job.id,
                job.kind,
                state_text(job.state),
                _done_text(job),
                f"{job.counts.failed:,}" if job.counts.failed else "",
                f"{rate_text(job.images_per_second)}/s" if job.images_per_second else "",
                duration_text(job.seconds) if job.seconds is not None else "",
                ago_text(job.created_at),
            )
            for job in jobs
        ],
        right=("done", "failed", "rate", "took"),
        spare=("failed", "rate", "took", "submitted"),
        empty="no jobs",
    )


def _done_text(job: Job) -> str:
    if job.counts.total or job.counts.done:
        return f"{job.counts.done:,}/{job.counts.total:,}"
    if job.progress.steps:
        return f"{job.progress.step or 0}/{job.progress.steps} {job.progress.unit or 'step'}s"
    return ""


def show_job(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show one job: state, counts, progress, what it made, why it failed."""
    with connect(context) as darkroom:
        job = darkroom.jobs.get(job_id)
        artifacts = list(darkroom.artifacts.list(job_id)) if not as_json else []
    if as_json:
        print_json(job.raw)
        return
    counts = job.counts
    parts = [
        f"{count:,} {name}"
        for name, count in (
            ("succeeded", counts.succeeded),
            ("failed", counts.failed),
            ("skipped", counts.skipped),
            ("cancelled", counts.cancelled),
            ("expired", counts.expired),
        )
        if count
    ]
    items = f"{counts.done:,} of {counts.total:,} done" + (f": {', '.join(parts)}" if parts else "")
    steps = job.progress.steps if not counts.total else None
    print_fields(
        (
            ("job", job.id),
            ("kind", job.kind),
            ("state", state_text(job.state)),
            ("trials" if job.kind == "search" else "images", items if counts.total else None),
            (
                job.progress.unit or "step",
                f"{job.progress.step or 0} of {steps}" if steps else None,
            ),
            (
                "rate",
                f"{rate_text(job.images_per_second)} images/s" if job.images_per_second else None,
            ),
            (
                "left",
                duration_text(job.eta_seconds) if job.eta_seconds and not job.is_over else None,
            ),
            ("submitted", ago_text(job.created_at)),
            ("deadline", job.deadline_at.isoformat(" ") if job.deadline_at else None),
            ("max failed", pairs_text(job.max_failed)),
            ("retry of", job.retry_of),
            ("took", duration_text(job.seconds) if job.seconds is not None else None),
            ("input", pairs_text(job.input)),
            ("options", pairs_text(without_recipe(job.options))),
            ("recipe", pairs_text(job.options.get("recipe"))),
            ("metadata", pairs_text(job.metadata)),
            ("model version", _name_of(job.model_version)),
            ("dataset version", _name_of(job.dataset_version)),
            ("result", pairs_text(job.result)),
            (
                "error",
                f"{job.error.get('detail')} [{job.error.get('code')}]" if job.error else None,
            ),
        )
    )
    for artifact in artifacts:
        say(f"file       {artifact.name}  {bytes_text(artifact.size_bytes)}  {artifact.id}")


def _name_of(version: Named | None) -> str | None:
    return f"{version.reference}  {version.id}" if version else None


def watch(
    context: typer.Context, job_id: JobId, timeout: Timeout = None, as_json: JsonFlag = False
) -> None:
    """Follow a job until it is over; the exit code says how it ended."""
    with connect(context) as darkroom:
        job = follow(darkroom, job_id, quiet=as_json, timeout=timeout)
        raise typer.Exit(finish(darkroom, job, as_json=as_json))


def results(
    context: typer.Context,
    job_id: JobId,
    only: Annotated[Only, typer.Option(help="Which items.")] = Only.ALL,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Items to show; 20 on tables, all as JSON."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, for machines.")
    ] = False,
) -> None:
    """Show the results of a job, also while it runs."""
    with connect(context) as darkroom:
        found = darkroom.jobs.results(job_id, only=only.value)
        if as_json:
            print_json_lines(result.raw for result in islice(found, limit))
            return
        rows = list(islice(found, (limit or 20) + 1))
    shown = rows[: limit or 20]
    has_labels = any(result.label is not None for result in shown)
    columns = ["image", "class", "score", "others"]
    if has_labels:
        columns.insert(3, "label")
    print_table(
        columns,
        [_result_row(result, has_labels=has_labels) for result in shown],
        right=("score",),
        wrap=("image", "others"),
        empty="no results yet",
    )
    if len(rows) > len(shown):
        note(f"the first {len(shown)}; see more with --limit, all with --json or darkroom export")


def _result_row(result: Result, *, has_labels: bool) -> list[object]:
    from rich.text import Text

    name = result.custom_id or result.source
    if result.prediction is None:
        error = result.error or {}
        row: list[object] = [
            name,
            state_text(result.state),
            "",
            Text(f"{error.get('detail', '')} [{error.get('code', '')}]", style="red"),
        ]
        right = False
    elif not result.prediction:
        row = [name, Text("no class above the threshold", style="dim"), "", ""]
        right = False
    else:
        best, *others = result.prediction
        then = ", ".join(f"{each.name} {each.score:.2f}" for each in others[:2])
        right = result.label == best.name
        row = [name, best.name, score_text(best.score), Text(then, style="dim")]
    if has_labels:
        row.insert(3, Text(result.label or "", style="green" if right else "yellow"))
    return row


def export(
    context: typer.Context,
    job_id: JobId,
    format: Annotated[  # noqa: A002  the API's own word
        Format | None,
        typer.Option("--format", "-f", help="Else by the name of --output, else jsonl."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File or folder to write.", show_default=False),
    ] = None,
    only: Annotated[Only, typer.Option(help="Which items.")] = Only.ALL,
    include_retries: Annotated[
        bool,
        typer.Option("--include-retries", help="With what retries of the job answered."),
    ] = False,
    force: Force = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the results of a job to a file: submits the export, waits, downloads, verifies."""
    chosen = format or _format_of(output)
    target = output or Path()
    check_output(target, f"results.{chosen}", force=force)
    with connect(context) as darkroom:
        job = darkroom.jobs.export(
            job_id, chosen.value, only=only.value, include_retries=include_retries
        )
        job = follow(darkroom, job.id, quiet=as_json, timeout=timeout)
        if job.state != "succeeded":
            finish(darkroom, job, as_json=as_json)
            raise typer.Exit(EXIT_OF_STATE.get(job.state, Exit.FAILED))
        artifact = next(
            each for each in darkroom.artifacts.list(job.id) if each.name.endswith(f".{chosen}")
        )
        if as_json:
            written = darkroom.artifacts.download(artifact, target)
            print_json({"file": str(written), "artifact": artifact.raw, "job": job.raw})
            return
        with TransferBar(f"fetching {artifact.name}") as bar:
            written = darkroom.artifacts.download(artifact, target, bar.moved)
        say(f"{written}  {bytes_text(artifact.size_bytes)}  sha256 {artifact.sha256}")


def _format_of(output: Path | None) -> Format:
    suffix = output.suffix.lstrip(".") if output is not None and not output.is_dir() else ""
    return Format(suffix) if suffix in list(Format) else Format.JSONL
