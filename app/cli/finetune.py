"""``darkroom finetune``: teach a recogniser the classes of a dataset version."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.follow import finish_submit
from app.cli.inputs import read_pairs
from app.cli.limits import DeadlineText, read_deadline
from app.cli.options import MetadataTexts, Priority, Timeout, Wait, Watch


def finetune(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="NAME@NUMBER, or NAME.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Model to make a version of.", show_default=False),
    ],
    arch: Annotated[str | None, typer.Option(help="Architecture.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    train_batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per step.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Size of a step.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of SGD.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of SGD.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, help="Share of a label given to all classes.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine or constant.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.")] = None,
    alias: Annotated[
        str, typer.Option(help="Alias to point at it; empty for none.")
    ] = "production",
    priority: Priority = 0,
    deadline: DeadlineText = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recogniser on a dataset version and register what comes out.

    What is not given takes the service's default.
    """
    pairs = read_pairs(metadata or ())
    until = read_deadline(deadline)
    with connect(context) as darkroom:
        job = darkroom.jobs.submit_finetune(
            dataset,
            model,
            alias=alias or None,
            priority=priority,
            deadline=until,
            metadata=pairs,
            arch=arch,
            epochs=epochs,
            train_batch_size=train_batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            schedule=schedule,
            seed=seed,
        )
        finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)
