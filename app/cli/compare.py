"""``darkroom models compare``: two versions on the same images."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.catalogue import find_version
from app.cli.connect import JsonFlag, connect
from app.cli.console import note, print_fields, print_json, print_table
from app.cli.words import speed_text

if TYPE_CHECKING:
    from app.client.comparison import Comparison

_MOST_CLASSES = 20


def compare(
    context: typer.Context,
    first: Annotated[
        str, typer.Argument(metavar="A", help="NAME@NUMBER, or NAME@ALIAS.", show_default=False)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The version held against it.", show_default=False)
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", "-d", help="NAME or NAME@NUMBER; else the newest that both have."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two versions on images that `darkroom evaluate` ran both on.

    Tells the accuracy of both, McNemar's test of whether the difference is chance, how fast each
    is, and the classes that gained and lost most.
    """
    with connect(context) as darkroom:
        sides = find_version(darkroom, first), find_version(darkroom, second)
        ours, theirs, found = darkroom.catalogue.compare(*sides, dataset=dataset)
        versions = [darkroom.models.get(name, number) for name, number in sides]
    if as_json:
        jobs = {"jobs": [ours.job_id, theirs.job_id], "dataset": ours.dataset, "split": ours.split}
        fast = {"speeds": [version.raw.get("speeds", []) for version in versions]}
        print_json(jobs | fast | asdict(found))
        return
    names = [f"{name}@{number}" for name, number in sides]
    speeds = [
        (f"speed of {name}", speed_text(speed))
        for name, version in zip(names, versions, strict=True)
        for speed in version.speeds
    ]
    _print_whole(names, f"{ours.dataset}, {ours.split or 'all'}", found, speeds)
    _print_classes(names, found)


def _print_whole(
    names: list[str], images: str, found: Comparison, speeds: list[tuple[str, str]]
) -> None:
    test = found.mcnemar
    better = names[found.accuracy_delta > 0]
    verdict = f"{better} is better" if test.exact_p < 0.05 else "the difference may well be chance"
    print_fields(
        (
            ("images", f"{found.images:,} of {images}"),
            ("left out", f"{found.left_out:,}" if found.left_out else None),
            (f"accuracy {names[0]}", f"{found.accuracy[0]:.4f}"),
            (f"accuracy {names[1]}", f"{found.accuracy[1]:.4f}  ({found.accuracy_delta:+.4f})"),
            (f"only {names[0]} right", f"{test.only_first_right:,}"),
            (f"only {names[1]} right", f"{test.only_second_right:,}"),
            ("McNemar's test", f"p = {test.exact_p:.4g} (exact): {verdict}"),
            *speeds,
        )
    )


def _print_classes(names: list[str], found: Comparison) -> None:
    moved = sorted(found.per_class, key=lambda each: -abs(each.f1_delta))
    print_table(
        ("class", "images", f"F1 {names[0]}", f"F1 {names[1]}", "F1 gain", "recall gain"),
        [
            (
                each.name,
                f"{each.images:,}",
                *(f"{value:.4f}" for value in each.f1),
                f"{each.f1_delta:+.4f}",
                f"{each.recall_delta:+.4f}",
            )
            for each in moved[:_MOST_CLASSES]
        ],
        right=("images", f"F1 {names[0]}", f"F1 {names[1]}", "F1 gain", "recall gain"),
        wrap=("class",),
        spare=("images", "recall gain"),
        empty="no class in common",
    )
    if len(moved) > _MOST_CLASSES:
        note(f"the {_MOST_CLASSES} that moved most of {len(moved):,}; see all with --json")
