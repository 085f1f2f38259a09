"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ActivationWord(StrEnum):
    """How scores are made of a network's outputs."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class PresetWord(StrEnum):
    """Recipes that suit an architecture."""

    QUICK = "quick"
    STANDARD = "standard"
    BEST = "best"


ModelOfJob = Annotated[
    str, typer.Option("--model", "-m", help="NAME, NAME@ALIAS, NAME@NUMBER, OWNER/NAME… or mdv_…")
]
DatasetOfJob = Annotated[
    str | None,
    typer.Option("--dataset", "-d", help="A dataset version: NAME@NUMBER.", show_default=False),
]
SplitOfJob = Annotated[
    str | None, typer.Option("--split", help="train, validation or test of it.", show_default=False)
]
DatasetOfTraining = Annotated[
    str, typer.Option("--dataset", "-d", help="NAME@NUMBER, or NAME.", show_default=False)
]
ModelOfTraining = Annotated[
    str, typer.Option("--model", "-m", help="Model to make a version of.", show_default=False)
]
Preset = Annotated[PresetWord | None, typer.Option(help="A recipe that suits the architecture.")]
Arch = Annotated[str | None, typer.Option(help="Architecture.")]
Start = Annotated[str | None, typer.Option(help="Model version whose weights to start from.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the images.")]
AliasToMove = Annotated[str, typer.Option(help="Alias to point at it; empty for none.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="job_…", show_default=False)]
TopK = Annotated[
    int | None, typer.Option("--top-k", "-k", min=1, max=1000, help="Classes per image.")
]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least score that is kept.", show_default=False)
]
Activation = Annotated[
    ActivationWord | None, typer.Option(help="How scores are made.", show_default=False)
]
Priority = Annotated[int, typer.Option(min=-100, max=100, help="Of your jobs, higher goes first.")]
MetadataTexts = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE kept with the job; repeat for more.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show progress until the job is over.")]
Wait = Annotated[bool, typer.Option("--wait", help="The same without showing.")]
Timeout = Annotated[
    float | None, typer.Option(min=1, help="Seconds to watch or wait at most.", show_default=False)
]
