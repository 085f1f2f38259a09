"""``darkroom metrics``: what a training logged, as curves, as a table, or for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import print_json, print_table, say, stdout
from app.cli.curves import draw_plots, read_plots
from app.cli.inputs import check_folder
from app.cli.options import JobId
from app.cli.words import bytes_text

if TYPE_CHECKING:
    from app.client.values import Metric

#: How names of event files begin; TensorBoard knows them by it.
_EVENT_FILE = "events.out.tfevents."


def metrics(
    context: typer.Context,
    job_id: JobId,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the event file of TensorBoard; made where it is not there.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the curves of a training, also while it runs; in a pipe, a table of its epochs.

    Of a search, a table of its trials; `darkroom trials` tells what each tried.
    """
    if tensorboard is not None:
        check_folder(tensorboard, "--tensorboard")
    with connect(context) as darkroom:
        # A search logs its trials, each as one step.
        unit = "trial" if darkroom.jobs.get(job_id).kind == "search" else "epoch"
        found = list(darkroom.jobs.metrics(job_id))
        written = None
        if tensorboard is not None:
            files = darkroom.artifacts.list(job_id)
            file = next((each for each in files if each.name.startswith(_EVENT_FILE)), None)
            if file is None:
                raise typer.BadParameter(
                    "the job has no event file: only a training whose version was kept has one, "
                    "once it is over",
                    param_hint="--tensorboard",
                )
            tensorboard.mkdir(exist_ok=True)
            written = darkroom.artifacts.download(file, tensorboard)
    if as_json:
        print_json([each.raw for each in found])
    elif stdout().is_terminal and unit == "epoch":
        _draw(found)
    else:
        _print_steps(found, unit)
    if written is not None and file is not None and not as_json:
        say(f"{written}  {bytes_text(file.size_bytes)}")


def _draw(found: list[Metric]) -> None:
    console = stdout()
    lines = draw_plots(read_plots(found), console.width, max(console.height - 2, 1))
    if not lines:
        # None at all, none that is drawn, or no room for it.
        _print_steps(found, "epoch")
    for line in lines:
        console.print(line, no_wrap=True, crop=False)


def _print_steps(found: list[Metric], unit: str) -> None:
    names = list(dict.fromkeys(each.name for each in found))
    rows: dict[int, dict[str, str]] = {}
    for each in found:
        value = "" if each.value is None else f"{each.value:.6g}"
        rows.setdefault(each.step, {})[each.name] = value
    columns = [unit, *names]
    print_table(
        columns,
        [[step, *(row.get(name, "") for name in names)] for step, row in rows.items()],
        right=columns,
        empty="no metrics: trainings log them at the end of each epoch, searches of each trial",
    )
