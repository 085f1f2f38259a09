"""``make demo`` and ``make demo-photos``: the whole road on real data, told as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import say
from app.cli.exits import Exit
from app.cli.follow import finish, follow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.client import Darkroom
    from app.client.values import Job, Result

OutOption = Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")]
EXPORT_FORMATS = ("jsonl", "csv", "parquet")


def demo(out: OutOption = Path("demo-out/digits")) -> None:
    """Train on handwritten digits, recognise the held-out fifth, compare families; offline."""
    from app.cli.demo_digits import write_digits
    from app.cli.demo_families import RECIPES, advice, candidate_of, recipe_of, table_lines
    from app.cli.demo_stack import run_story

    def story(darkroom: Darkroom) -> str:
        step("Handwritten digits become a zip of PNGs with a labels.csv")
        archive = out / "digits.zip"
        train, test = write_digits(archive)
        say(f"  {archive}: {train:,} images to learn from, {test:,} held out")

        step("Upload: the archive is unpacked, judged and packed into shards")
        upload_id = add_archive(darkroom, archive)

        step("Freeze: a dataset version that never changes")
        dataset = darkroom.datasets.freeze("digits", upload_id)
        name = f"{dataset.name}@{dataset.number}"
        say(f"  {name}: {dataset.sample_count:,} samples, content {dataset.content_sha256[:12]}…")

        step("Fine-tune: a small CNN learns the classes and is registered with its lineage")
        trained = end_well(darkroom, darkroom.jobs.submit_finetune(name, "digits", seed=0))
        version = (trained.result or {}).get("model_version", "")

        step("Recognise: the held-out fifth as a bulk job")
        job = end_well(
            darkroom,
            darkroom.jobs.submit_predict({"dataset": name, "split": "test"}, "digits@production"),
        )
        results = list(darkroom.jobs.results(job.id))
        accuracy = share_within(results, 1)

        step("Export: the same results in three formats")
        files = export_all(darkroom, job, out)

        step("Confusion: rows are labels, columns are predictions")
        for line in confusion_lines(results):
            say(f"  {line}")

        step("Compare: a recurrent network, a Transformer and a linear SVM learn the same digits")
        candidates = [candidate_of(darkroom, "cnn", trained)]
        for family in RECIPES:
            submitted = darkroom.jobs.submit_finetune(
                name, f"digits-{family}", seed=0, **recipe_of(family)
            )
            candidates.append(candidate_of(darkroom, family, end_well(darkroom, submitted)))
        for line in table_lines(candidates):
            say(f"  {line}")
        say(f"  {advice(candidates)}")

        step("Where everything lies")
        say(f"  recogniser   {version} (digits@production)")
        for file in files:
            say(f"  results      {file}")
        say(f"  the service  {out / 'data'}; look around: darkroom up --data {out / 'data'}")
        return f"demo accuracy={accuracy:.4f} items={len(results)} images_per_s={speed_of(job):.1f}"

    raise typer.Exit(run_story(out, story))


def demo_photos(
    photos: Annotated[Path, typer.Option(exists=True, help="A zip with a labels.csv.")],
    weights: Annotated[Path, typer.Option(exists=True, help="A safetensors file.")],
    arch: Annotated[str, typer.Option(help="An architecture of torchvision.")] = "squeezenet1_0",
    out: OutOption = Path("demo-out/photos"),
) -> None:
    """Recognise a zip of labelled ImageNet photos and print how often it was right."""
    from app.cli.demo_stack import run_story

    def story(darkroom: Darkroom) -> str:
        step(f"Import: {weights.name} is checked against {arch} and registered")
        added = darkroom.uploads.add(weights, kind="weights")
        end_well(
            darkroom,
            darkroom.models.import_weights(
                "photos", arch=arch, weights=added.upload.id, classes="imagenet"
            ),
        )

        step(f"Upload: {photos.name}")
        upload_id = add_archive(darkroom, photos)

        step("Recognise: every photo, five best classes each")
        job = end_well(
            darkroom,
            darkroom.jobs.submit_predict({"upload": upload_id}, "photos@production", top_k=5),
        )
        results = list(darkroom.jobs.results(job.id))
        top1, top5 = share_within(results, 1), share_within(results, 5)
        say(f"  right at once {top1:.1%}, among the five best {top5:.1%}")

        step("Export: the same results in three formats")
        for file in export_all(darkroom, job, out):
            say(f"  {file}")
        return (
            f"photos top1={top1:.4f} top5={top5:.4f} items={len(results)} "
            f"images_per_s={speed_of(job):.1f}"
        )

    raise typer.Exit(run_story(out, story))


def step(title: str) -> None:
    """The heading of one step of the story."""
    say("")
    say(title, style="bold")


def add_archive(darkroom: Darkroom, path: Path) -> str:
    """Upload an archive and wait until it is unpacked; returns the upload's id."""
    added = darkroom.uploads.add(path)
    assert added.job is not None
    end_well(darkroom, added.job)
    return added.upload.id


def end_well(darkroom: Darkroom, job: Job) -> Job:
    """Follow a job to its end and tell it; the demo goes on unless nothing came of the job."""
    ended = follow(darkroom, job.id)
    code = finish(darkroom, ended)
    if code not in (Exit.DONE, Exit.PARTIAL):
        raise typer.Exit(code)
    return ended


def export_all(darkroom: Darkroom, job: Job, out: Path) -> list[Path]:
    """Export the results of a job in every format, into ``out``."""
    files = []
    for name in EXPORT_FORMATS:
        export = end_well(darkroom, darkroom.jobs.export(job.id, name))
        for artifact in darkroom.artifacts.list(export.id):
            own = artifact.name.startswith("results.")
            target = out / (artifact.name if own else f"{name}.{artifact.name}")
            files.append(darkroom.artifacts.download(artifact, target))
    return files


def share_within(results: Sequence[Result], places: int) -> float:
    """Of the labelled items, the share whose label is among the first ``places`` classes."""
    labelled = [result for result in results if result.label is not None]
    right = sum(
        any(score.name == result.label for score in (result.prediction or ())[:places])
        for result in labelled
    )
    return right / len(labelled) if labelled else 0.0


def confusion_lines(results: Sequence[Result]) -> list[str]:
    """A table of counts as text, one line per label, headed by the classes predicted."""
    pairs = [
        (result.label, result.prediction[0].name)
        for result in results
        if result.label is not None and result.prediction
    ]
    names = sorted({name for pair in pairs for name in pair})
    width = max((len(name) for name in names), default=1) + 3
    lines = ["".join(f"{name:>{width}}" for name in ("", *names))]
    for label in names:
        counts = (pairs.count((label, name)) for name in names)
        lines.append(f"{label:>{width}}" + "".join(f"{count or '·':>{width}}" for count in counts))
    return lines


def speed_of(job: Job) -> float:
    """Images per second from the first claim to the end."""
    return job.counts.done / job.seconds if job.seconds else 0.0
