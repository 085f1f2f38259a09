"""One recogniser of each family on the same digits: which to choose, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.cli.words import count_text, duration_text

if TYPE_CHECKING:
    from app.client import Darkroom
    from app.client.values import Job

#: A difference in accuracy that a few images in hundreds make by chance.
_ALIKE = 0.01

#: What each family is trained by here: recipes that take seconds on two cores.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "rnn": {
        "arch": "row_rnn",
        "arch_options": {"preset": "small"},
        "epochs": 10,
    },
    "transformer": {
        "arch": "patch_transformer",
        "arch_options": {"preset": "small"},
        "epochs": 12,
        "weight_decay": 0.05,
        "learning_rate": 0.002,
    },
    "baseline": {"arch": "linear_svm"},
}
_ADAMW = {
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "warmup_epochs": 1,
    "train_batch_size": 64,
}


def recipe_of(family: str) -> dict[str, Any]:
    """The whole recipe of a family but the CNN, which takes the defaults."""
    fields = dict(RECIPES[family])
    return fields if family == "baseline" else _ADAMW | fields


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained recogniser as the comparison shows it."""

    family: str
    #: ``digits@1``
    version: str
    arch: str
    accuracy: float
    #: Multiply-accumulate operations for one image; None for a baseline, whose features cost more
    #: than is counted.
    macs: int | None
    training_seconds: float


def candidate_of(darkroom: Darkroom, family: str, job: Job) -> Candidate:
    """The version that a training has made."""
    assert job.model_version is not None
    name, number = job.model_version.name, job.model_version.number
    version = darkroom.models.get(name, number)
    return Candidate(
        family=family,
        version=f"{name}@{number}",
        arch=version.arch,
        accuracy=(version.scores or {})["accuracy"],
        macs=None if family == "baseline" else version.macs,
        training_seconds=job.seconds or 0.0,
    )


def table_lines(candidates: Sequence[Candidate]) -> list[str]:
    """The candidates, best first, as aligned lines."""
    head = (
        f"{'family':<12} {'architecture':<18} {'accuracy':>8} {'operations':>12} {'trained in':>10}"
    )
    lines = [head]
    for one in ranked(candidates):
        lines.append(
            f"{one.family:<12} {one.arch:<18} {one.accuracy:>8.4f} {count_text(one.macs):>12} "
            f"{duration_text(one.training_seconds):>10}"
        )
    return lines


def advice(candidates: Sequence[Candidate]) -> str:
    """Which network to take, and why, in two or three sentences."""
    networks = [one for one in ranked(candidates) if one.macs is not None]
    best = networks[0]
    alike = [one for one in networks if best.accuracy - one.accuracy <= _ALIKE]
    choice = min(alike, key=lambda one: one.macs or 0)
    why = "it is right most often"
    if len(alike) > 1:
        why = "of the networks that are about as good as the best, it needs the fewest operations"
    text = f"Take the {choice.arch} ({choice.version}, {choice.accuracy:.2%}): {why}."
    for one in candidates:
        if one.macs is None:
            gain = (choice.accuracy - one.accuracy) * 100
            worth = f"is worth {gain:.1f} points" if gain >= 0.05 else "buys nothing"
            text += (
                f" The {one.arch}, no deep network at all, reaches {one.accuracy:.2%}: on images "
                f"as plain as these depth {worth}."
            )
    return text + " On your own images the order may be another."


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """By accuracy, then by what an answer costs."""
    return sorted(candidates, key=lambda one: (-one.accuracy, one.macs or 0))
