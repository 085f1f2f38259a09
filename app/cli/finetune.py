"""``darkroom finetune``: teach a recogniser the classes of a dataset version."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.follow import finish_submit
from app.cli.inputs import read_pairs, read_value
from app.cli.limits import DeadlineText, read_deadline, read_seconds
from app.cli.options import (
    AliasToMove,
    Arch,
    DatasetOfTraining,
    Epochs,
    MetadataTexts,
    ModelOfTraining,
    Preset,
    Priority,
    Start,
    Timeout,
    Wait,
    Watch,
)


def finetune(
    context: typer.Context,
    dataset: DatasetOfTraining,
    model: ModelOfTraining,
    preset: Preset = None,
    arch: Arch = None,
    start: Start = None,
    train_layers: Annotated[
        str | None, typer.Option(help="all, or head: a linear probe of --start.")
    ] = None,
    input_px: Annotated[int | None, typer.Option(min=8, help="Side of the square images.")] = None,
    epochs: Epochs = None,
    max_time: Annotated[
        str | None, typer.Option(help="Train at most so long, such as 10m, and keep the best.")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(min=0, help="End after so many epochs without progress.")
    ] = None,
    train_batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=0, help="Images at once; 0 is automatic.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Size of a step.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum, or AdamW's beta 1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, help="Share of a label given to all classes.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine, step, one_cycle or constant.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32, or bf16 on a GPU.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="FIELD=VALUE of the recipe, such as ema_decay=0.999, augment.flip=true or "
            "arch_options.depth=20; repeat for more.",
        ),
    ] = None,
    alias: AliasToMove = "production",
    priority: Priority = 0,
    deadline: DeadlineText = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recogniser on a dataset version and register what comes out.

    What is not given takes the preset's value, without one the service's default. A training
    that is cancelled after an epoch keeps its best network as a version without an alias.
    """
    pairs = read_pairs(metadata or ())
    until = read_deadline(deadline)
    recipe: dict[str, Any] = {
        "preset": preset.value if preset is not None else None,
        "arch": arch,
        "start": start,
        "train_layers": train_layers,
        "input_px": input_px,
        "epochs": epochs,
        "max_seconds": read_seconds(max_time, "--max-time") if max_time is not None else None,
        "early_stopping_epochs": early_stopping,
        "train_batch_size": train_batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "schedule": schedule,
        "precision": precision,
        "seed": seed,
    }
    for name, value in recipe.items():
        if isinstance(value, float) and not isfinite(value):
            raise typer.BadParameter(
                f"{value} is no finite number", param_hint=f"--{name.replace('_', '-')}"
            )
    recipe |= read_fields(fields or ())
    with connect(context) as darkroom:
        job = darkroom.jobs.submit_finetune(
            dataset,
            model,
            alias=alias or None,
            priority=priority,
            deadline=until,
            metadata=pairs,
            **recipe,
        )
        finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """``["augment.flip=true", "seed=3"]`` as nested fields; a value is JSON, or else text."""
    fields: dict[str, Any] = {}
    for name, text in read_pairs(texts, "--set").items():
        *parents, last = name.split(".")
        place = fields
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise typer.BadParameter(f"{parent} is a value already", param_hint="--set")
        place[last] = read_value(text)
    return fields
