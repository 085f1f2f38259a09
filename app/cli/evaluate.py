"""``darkroom evaluate``: measure a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import note
from app.cli.exits import Exit
from app.cli.follow import finish, finish_submit, follow
from app.cli.inputs import check_output, read_pairs
from app.cli.limits import DeadlineText, MaxFailedTexts, read_deadline, read_max_failed
from app.cli.options import (
    DatasetOfJob,
    Force,
    MetadataTexts,
    ModelOfJob,
    Priority,
    SplitOfJob,
    Timeout,
    TopK,
    Wait,
    Watch,
)

if TYPE_CHECKING:
    from app.client import Darkroom
    from app.client.values import Job

_REPORTS = (".html", ".json", ".csv")


def evaluate(
    context: typer.Context,
    model: ModelOfJob,
    dataset: DatasetOfJob = None,
    split: SplitOfJob = None,
    upload: Annotated[
        str | None, typer.Option(help="An upload with labels: upl_…", show_default=False)
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="s3://bucket/key of a JSONL or CSV with labels.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            "-o",
            help="Wait, then write the report here: a .html, .json or .csv file.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    top_k: TopK = None,
    bootstrap_samples: Annotated[
        int | None, typer.Option(min=1, help="Resamples that intervals are made of.")
    ] = None,
    hardest: Annotated[
        int | None, typer.Option(min=0, help="Images that the report names as hardest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same intervals.")] = None,
    priority: Priority = 0,
    deadline: DeadlineText = None,
    max_failed: MaxFailedTexts = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how right a model is on labelled images, and how sure.

    The job's report has scores with intervals, the confusion matrix, calibration, and the images
    that were hardest; its files are also listed by `darkroom job`.
    """
    source = _source(dataset, split, upload, manifest)
    _check_report(report, force=force)
    pairs = read_pairs(metadata or ())
    until, budget = read_deadline(deadline), read_max_failed(max_failed)
    with connect(context) as darkroom:
        job = darkroom.jobs.submit_evaluate(
            source,
            model,
            top_k=top_k,
            bootstrap_samples=bootstrap_samples,
            hardest=hardest,
            seed=seed,
            priority=priority,
            deadline=until,
            max_failed=budget,
            metadata=pairs,
        )
        if report is None:
            finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)
            return
        if not as_json:
            note(f"job {job.id}")
        job = follow(darkroom, job.id, quiet=as_json or wait, timeout=timeout)
        code = finish(darkroom, job, as_json=as_json)
        if code in (Exit.DONE, Exit.PARTIAL):
            _save(darkroom, job, report)
        raise typer.Exit(code)


def _check_report(path: Path | None, *, force: bool) -> None:
    if path is None:
        return
    if path.suffix.lower() not in _REPORTS:
        raise typer.BadParameter(f"a report is a {', '.join(_REPORTS)} file", param_hint="--report")
    check_output(path, path.name, force=force, option="--report")


def _source(
    dataset: str | None, split: str | None, upload: str | None, manifest: str | None
) -> dict[str, Any]:
    named = {"dataset": dataset, "upload": upload, "manifest": manifest}
    given = {kind: value for kind, value in named.items() if value is not None}
    if len(given) != 1:
        raise typer.BadParameter(
            "give exactly one of --dataset, --upload and --manifest", param_hint="--dataset"
        )
    if split is not None and dataset is None:
        raise typer.BadParameter("only a dataset has splits", param_hint="--split")
    return given | ({"split": split} if split is not None else {})


def _save(darkroom: Darkroom, job: Job, path: Path) -> None:
    name = f"report{path.suffix.lower()}"
    artifact = next(each for each in darkroom.artifacts.list(job.id) if each.name == name)
    darkroom.artifacts.download(artifact, path)
    note(f"report in {path}")
