"""Follows a job to its end: its bar, its epochs, its summary, its exit code."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from app.cli.console import (
    note,
    print_faults,
    print_json,
    say,
    stderr,
    stdout,
    warn,
)
from app.cli.curves import Plot, draw_plots, read_plots
from app.cli.exits import EXIT_OF_STATE, Exit
from app.cli.progress import Bar, images_facts
from app.cli.words import STATE_STYLE, count_text, duration_text, harmless, pairs_text, rate_text

if TYPE_CHECKING:
    from rich.text import Text

    from app.client import Darkroom
    from app.client.values import Job, Metric, Trial

_TITLE = {
    "predict": "recognising",
    "evaluate": "recognising",
    "ingest": "unpacking",
    "finetune": "training",
    "search": "searching",
    "export": "exporting",
    "import": "importing",
}
#: Kinds that end with a model version.
_MAKES_VERSION = ("finetune", "search", "import")
#: States that say more than the kind of the job does.
_SAID_AS_THEY_ARE = frozenset(
    {"validating", "queued", "finalizing", "paused", "cancelling", "cancelled", "failed", "expired"}
)
_FOR_CURVES = frozenset({"learning_rate", "steps"})
#: They fit into 80 columns.
_SCORES_A_LINE = 4
#: Failed items read for the summary of their codes.
_MOST_FAILED = 10_000


def follow(
    darkroom: Darkroom, job_id: str, *, quiet: bool = False, timeout: float | None = None
) -> Job:
    """The job once it is over, with a bar on the way unless ``quiet``."""
    if quiet:
        return darkroom.jobs.wait(job_id, timeout)
    view = JobView(darkroom)
    try:
        with view.bar:
            return darkroom.jobs.wait(job_id, timeout, view.changed)
    except KeyboardInterrupt:
        note(f"stopped watching; the job goes on: darkroom watch {job_id}")
        raise


class JobView:
    """The bar of a job, moved by each of its answers; of a training, its curves as well."""

    def __init__(self, darkroom: Darkroom) -> None:
        self._darkroom = darkroom
        self.bar = Bar("waiting")
        self.bar.draw_above(self._draw)
        self._epochs_shown = 0
        self._trials_shown: set[int] = set()
        self._plots: list[Plot] = []

    def changed(self, job: Job) -> None:
        """Show what is new."""
        if job.kind == "finetune":
            self._show_epochs(job)
        elif job.kind == "search":
            self._show_trials(job)
        title = _TITLE.get(job.kind, job.kind)
        if job.state in _SAID_AS_THEY_ARE:
            title = {"validating": "reading the input", "finalizing": "measuring"}.get(
                job.state, job.state
            )
            if job.kind == "ingest" and job.state == "validating":
                title = "queued"
        self.bar.show(_fraction(job), _facts(job), title=title, last=job.is_over)

    def _show_epochs(self, job: Job) -> None:
        # While images are read, or read again for a training that goes on, they are counted.
        trains = job.progress.unit == "epoch"
        step = (job.progress.step or 0) if trains else 0
        if step <= self._epochs_shown and not job.is_over:
            return
        metrics = list(self._darkroom.jobs.metrics(job.id))
        self._plots = read_plots(metrics)
        rows: dict[int, list[Metric]] = {}
        for metric in metrics:
            rows.setdefault(metric.step, []).append(metric)
        for number in sorted(rows):
            if number > self._epochs_shown:
                self._epochs_shown = number
                steps = job.progress.steps if trains else None
                self.bar.line(epoch_line(number, steps, rows[number]))

    def _draw(self, width: int, height: int) -> list[Text]:
        return draw_plots(self._plots, width, height)

    def _show_trials(self, job: Job) -> None:
        if job.counts.done <= len(self._trials_shown):
            return
        for trial in self._darkroom.jobs.trials(job.id):
            if trial.ended_at is not None and trial.number not in self._trials_shown:
                self._trials_shown.add(trial.number)
                self.bar.line(trial_line(trial))


def trial_line(trial: Trial) -> str:
    """``trial 3  complete  accuracy 0.9512 loss 0.1630  learning_rate=0.01``."""
    parts = [f"trial {trial.number}", trial.state]
    if trial.accuracy is not None:
        parts.append(f"accuracy {_number(trial.accuracy)} loss {_number(trial.loss)}")
    if trial.error:
        parts.append(f"[{trial.error.get('code')}]")
    return "  ".join([*parts, pairs_text(trial.parameters) or ""])


def epoch_line(number: int, epochs: int | None, metrics: list[Metric]) -> str:
    """``epoch 3/30  train loss 0.1630 accuracy 0.9512  test loss …  1,240 images/s  0.2 s``.

    Names that begin with a split are grouped by it; some others are for curves only.
    """
    groups: dict[str, list[str]] = {split: [] for split in ("train", "validation", "test", "")}
    rate = seconds = ""
    for each in metrics:
        split, _, name = each.name.partition("_")
        if each.name == "epoch_seconds":
            seconds = duration_text(each.value)
        elif split in groups:
            groups[split].append(f"{name} {_number(each.value)}")
        elif each.name == "images_per_second":
            rate = f"{rate_text(each.value)} images/s"
        elif each.name not in _FOR_CURVES:
            groups[""].append(f"{each.name} {_number(each.value)}")
    parts = [
        f"{split} {' '.join(sorted(values, reverse=True))}".strip()
        for split, values in groups.items()
        if values
    ]
    width = len(str(epochs or number))
    of = f"/{epochs}" if epochs else ""
    told = [f"epoch {number:>{width}}{of}", *parts, rate, seconds]
    return "  ".join(part for part in told if part)


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def _fraction(job: Job) -> float | None:
    if job.state == "succeeded":
        return 1.0
    if job.counts.cancelled or job.counts.expired:
        return job.counts.done / job.counts.total
    if job.progress.fraction is not None:
        return job.progress.fraction
    if job.progress.steps:
        return (job.progress.step or 0) / job.progress.steps
    return None


def _facts(job: Job) -> str:
    counts = job.counts
    if job.progress.steps and not counts.total:
        unit = job.progress.unit or "step"
        facts = f"{unit} {job.progress.step or 0} of {job.progress.steps}"
        if job.eta_seconds is not None and not job.is_over:
            facts += f", {duration_text(job.eta_seconds)} left"
        return facts
    if not counts.total and not counts.done:
        return ""
    if job.kind == "ingest" and not job.is_over:
        # The number of members is known only at the end of the archive.
        rate = f", {rate_text(job.images_per_second)} images/s" if job.images_per_second else ""
        return count_text(counts.done, "image") + rate
    return images_facts(
        counts.done,
        counts.total,
        counts.failed,
        job.images_per_second,
        job.eta_seconds,
        noun=_noun(job),
    )


def _noun(job: Job) -> str:
    """What the job counts."""
    return "trial" if job.kind == "search" else "image"


def finish_submit(
    darkroom: Darkroom,
    job: Job,
    *,
    watch: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Print the job just submitted; with ``watch`` or ``wait`` follow it and exit as it ends."""
    if watch or wait:
        if not as_json:
            note(f"job {job.id}")
        job = follow(darkroom, job.id, quiet=as_json or not watch, timeout=timeout)
        raise typer.Exit(finish(darkroom, job, as_json=as_json))
    if as_json:
        print_json(job.raw)
        return
    say(job.id)
    note(f"submitted; follow it with: darkroom watch {job.id}")


def finish(darkroom: Darkroom, job: Job, *, as_json: bool = False) -> Exit:
    """Print how the job ended and return the exit code that says so."""
    if as_json:
        print_json(job.raw)
        return EXIT_OF_STATE.get(job.state, Exit.FAILED)
    counts = job.counts
    mark = {"succeeded": "✓", "partially_succeeded": "!", "cancelled": "–"}.get(job.state, "✗")
    untouched = counts.cancelled + counts.expired
    line = f"{mark} {job.id} {job.state.replace('_', ' ')}"
    if counts.total:
        reached = f"{counts.done:,} of " if untouched else ""
        line += f": {reached}{count_text(counts.total, _noun(job))}"
    if job.seconds is not None:
        line += f" in {duration_text(job.seconds)}"
    if job.images_per_second:
        line += f", {rate_text(job.images_per_second)} images/s"
    say(line, style=STATE_STYLE.get(job.state, ""))
    if job.error:
        _say_error(job.error)
    if counts.failed:
        _say_failed(darkroom, job)
    if untouched:
        # Of trials the last ones had begun, but came to no end.
        left = "not finished" if job.kind == "search" else "not touched"
        say(f"  {count_text(untouched, _noun(job))} {left}")
    if job.kind == "predict" and (counts.failed or untouched):
        # Who may not run the model any more is refused again.
        revoked = (job.error or {}).get("code") == "model_grant_revoked"
        say(f"  try them again: darkroom retry {job.id}{' --model ANOTHER' if revoked else ''}")
    result = job.result or {}
    kept = job.state == "succeeded" or "model_version" in result
    if kept and job.kind in _MAKES_VERSION and job.model_version:
        say(f"  {job.model_version.reference}  {job.model_version.id}")
    if job.kind == "search" and result:
        say(f"  trial {result['trial']}  {pairs_text(result['parameters']) or ''}")
    scores = {name: value for name, value in result.items() if isinstance(value, float)}
    told = [f"{name} {_number(value)}" for name, value in scores.items()]
    for first in range(0, len(told), _SCORES_A_LINE):
        say("  " + "  ".join(told[first : first + _SCORES_A_LINE]))
    return EXIT_OF_STATE.get(job.state, Exit.FAILED)


def _say_error(error: Any) -> None:
    stderr().print(
        harmless(f"  {error.get('detail', '')} [{error.get('code', '')}]", lines=True),
        style="red",
        markup=False,
        soft_wrap=True,
    )
    print_faults(stderr().print, error.get("errors") or (), error.get("errors_total"))


def _say_failed(darkroom: Darkroom, job: Job) -> None:
    """How many items failed by code, with one name for each."""
    codes: Counter[str] = Counter()
    first: dict[str, str] = {}
    for seen, item in enumerate(darkroom.jobs.errors(job.id)):
        if seen >= _MOST_FAILED:
            break
        code = str((item.error or {}).get("code", "unknown"))
        codes[code] += 1
        first.setdefault(code, item.source or item.custom_id)
    more = "" if sum(codes.values()) >= job.counts.failed else " (of those looked at)"
    warn(f"  {count_text(job.counts.failed, _noun(job))} failed{more}:")
    for code, count in codes.most_common():
        warn(f"    {count:>6,}  {code}, such as {first[code]}")
    stdout().print(
        f"  see them all: darkroom results {job.id} --only failed", markup=False, soft_wrap=True
    )
