"""``darkroom search | trials``: try recipes, keep the best network, see what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import print_json, print_table, state_text
from app.cli.finetune import read_fields
from app.cli.follow import finish_submit
from app.cli.inputs import read_pairs, read_value
from app.cli.limits import DeadlineText, read_deadline, read_seconds
from app.cli.options import (
    AliasToMove,
    Arch,
    DatasetOfTraining,
    Epochs,
    JobId,
    MetadataTexts,
    ModelOfTraining,
    Preset,
    Priority,
    Start,
    Timeout,
    Wait,
    Watch,
)
from app.cli.words import duration_text, pairs_text

if TYPE_CHECKING:
    from app.client.values import Trial

_LOG = ":log"


class MetricWord(StrEnum):
    """What trials are judged by."""

    ACCURACY = "accuracy"
    LOSS = "loss"


class PrunerWord(StrEnum):
    """Which trials are ended early."""

    MEDIAN = "median"
    NONE = "none"


def search(
    context: typer.Context,
    dataset: DatasetOfTraining,
    model: ModelOfTraining,
    space: Annotated[
        list[str],
        typer.Option(
            help="FIELD=LOW..HIGH, with :log for the logarithm, or FIELD=A,B,C; repeat for more.",
            show_default=False,
        ),
    ],
    trials: Annotated[
        int | None, typer.Option("--trials", "-n", min=1, help="How many to try.")
    ] = None,
    preset: Preset = None,
    arch: Arch = None,
    start: Start = None,
    epochs: Epochs = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of the recipe of all trials; repeat for more."),
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(help="Begin no trial after so long, such as 2h.")
    ] = None,
    metric: Annotated[MetricWord | None, typer.Option(help="What trials are judged by.")] = None,
    pruner: Annotated[PrunerWord | None, typer.Option(help="Which trials are ended early.")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Epochs that each trial gets at least.")
    ] = None,
    random_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials drawn at random before others learn.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice of recipes.")] = None,
    alias: AliasToMove = "production",
    priority: Priority = 0,
    deadline: DeadlineText = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Train by recipes that differ, on all training workers at once, and register the best.

    A cancelled search keeps the best network of its finished trials as a version without an alias.
    """
    recipe: dict[str, Any] = {
        "preset": preset.value if preset is not None else None,
        "arch": arch,
        "start": start,
        "epochs": epochs,
    }
    recipe |= read_fields(fields or ())
    options: dict[str, Any] = {
        "trials": trials,
        "max_seconds": read_seconds(max_time, "--max-time") if max_time is not None else None,
        "metric": metric.value if metric is not None else None,
        "pruner": pruner.value if pruner is not None else None,
        "pruner_warmup_epochs": warmup,
        "random_trials": random_trials,
        "seed": seed,
    }
    asked, until, pairs = read_space(space), read_deadline(deadline), read_pairs(metadata or ())
    with connect(context) as darkroom:
        job = darkroom.jobs.submit_search(
            dataset,
            model,
            space=asked,
            recipe={name: value for name, value in recipe.items() if value is not None},
            alias=alias or None,
            priority=priority,
            deadline=until,
            metadata=pairs,
            **options,
        )
        finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)


def read_space(texts: Sequence[str]) -> dict[str, Any]:
    """``["learning_rate=1e-4..1e-1:log", "optimizer=sgd,adamw"]`` as the service takes it."""
    return {name: _values(text) for name, text in read_pairs(texts, "--space").items()}


def _values(text: str) -> dict[str, Any]:
    low, dots, high = text.removesuffix(_LOG).partition("..")
    if dots:
        ends = {"low": read_value(low), "high": read_value(high)}
        if not all(isinstance(end, int | float) for end in ends.values()):
            raise typer.BadParameter(f"{text!r} is no LOW..HIGH of numbers", param_hint="--space")
        return ends | ({"log": True} if text.endswith(_LOG) else {})
    choices = [each.strip() for each in text.split(",")]
    if not all(choices):
        raise typer.BadParameter(
            f"{text!r} has an empty choice; give FIELD=LOW..HIGH or FIELD=A,B,C",
            param_hint="--space",
        )
    return {"choices": [read_value(each) for each in choices]}


def trials(
    context: typer.Context,
    job_id: JobId,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Trials to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show what a search tried, best first; also while it runs."""
    with connect(context) as darkroom:
        job = darkroom.jobs.get(job_id)
        found = list(darkroom.jobs.trials(job_id))
    found.sort(key=lambda trial: _rank(trial, job.options.get("metric", MetricWord.ACCURACY)))
    if as_json:
        print_json([trial.raw for trial in found])
        return
    print_table(
        ("trial", "state", "accuracy", "loss", "epochs", "took", "parameters"),
        [
            (
                trial.number,
                state_text(trial.state),
                _score(trial.accuracy),
                _score(trial.loss),
                len(trial.epochs),
                duration_text(trial.seconds) if trial.seconds is not None else "",
                _why(trial),
            )
            for trial in found[:limit]
        ],
        right=("trial", "accuracy", "loss", "epochs", "took"),
        wrap=("parameters",),
        spare=("took", "epochs"),
        empty="no trials: either none has begun, or it is no search",
    )


def _rank(trial: Trial, metric: str) -> tuple[bool, float, int]:
    value = trial.loss if metric == MetricWord.LOSS else trial.accuracy
    if value is None:
        return True, 0.0, trial.number
    return False, value if metric == MetricWord.LOSS else -value, trial.number


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _why(trial: Trial) -> str:
    parameters = pairs_text(trial.parameters) or ""
    return f"{parameters}  [{trial.error.get('code')}]" if trial.error else parameters
