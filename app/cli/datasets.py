"""``darkroom datasets freeze | list | show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import answer, note, print_fields, print_json, print_table, warn
from app.cli.inputs import read_fractions, read_pairs
from app.cli.words import ago_text, bytes_text, count_text, pairs_text

if TYPE_CHECKING:
    from app.client.values import DatasetVersion

app = typer.Typer(
    cls=GuardedGroup, help="Freeze labelled images and list them.", no_args_is_help=True
)


@app.command()
def freeze(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the dataset.", show_default=False)
    ],
    upload: Annotated[
        str, typer.Option("--upload", "-u", help="upl_… with labels.", show_default=False)
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="train,validation,test or train,test that add up to 1; else 0.8,0.2. A search "
            "needs a validation part.",
            metavar="PARTS",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another split.")] = None,
    skip_unlabelled: Annotated[
        bool, typer.Option("--skip-unlabelled", help="Leave out images without a label.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Another name for a label; two of one name become one class. Repeat for more.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Freeze an upload's labelled images into a version; the same images give the same version."""
    fractions = read_fractions(split)
    labels = read_pairs(label or (), "--label")
    with connect(context) as darkroom:
        version = darkroom.datasets.freeze(
            name,
            upload,
            fractions=fractions,
            seed=seed,
            skip_unlabelled=skip_unlabelled,
            labels=labels,
        )
    line = f"{name}@{version.number}  {_splits_text(version)}, {_classes_text(version)}"
    answer(version.raw, line, as_json=as_json)
    if _warn_of_duplicates(version):
        note(f"which they are: darkroom datasets show {name}@{version.number}")


@app.command("list")
def list_datasets(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this dataset.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List dataset versions."""
    with connect(context) as darkroom:
        names = [name] if name else [dataset.name for dataset in darkroom.datasets.list()]
        rows = [(each, version) for each in names for version in darkroom.datasets.versions(each)]
    if as_json:
        print_json([version.raw for _, version in rows])
        return
    print_table(
        ("dataset", "images", "splits", "classes", "content", "frozen"),
        [
            (
                f"{each}@{version.number}",
                f"{version.sample_count:,}",
                _splits_text(version),
                f"{len(version.classes):,}",
                version.content_sha256[:12],
                ago_text(version.created_at),
            )
            for each, version in rows
        ],
        right=("images", "classes"),
        wrap=("splits",),
        spare=("frozen", "content"),
        empty="no datasets",
    )


@app.command()
def show(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="DATASET", help="NAME (latest) or NAME@NUMBER.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Show one dataset version: its images, which are the same, and how many by class and split."""
    name, _, number = reference.partition("@")
    if number and not number.isdigit():
        raise typer.BadParameter(f"{reference!r} is not of the form NAME@NUMBER")
    with connect(context) as darkroom:
        if number:
            version = darkroom.datasets.get(name, int(number))
        else:
            version = max(darkroom.datasets.versions(name), key=lambda each: each.number)
    if as_json:
        print_json(version.raw)
        return
    print_fields(
        (
            ("dataset", f"{name}@{version.number}"),
            ("id", version.id),
            ("images", count_text(version.sample_count)),
            ("content", version.content_sha256),
            ("from", pairs_text(version.source)),
            ("frozen", ago_text(version.created_at)),
            *_facts(version),
        )
    )
    splits = _splits(version)
    print_table(
        ("class", *splits),
        [
            (each, *(f"{version.counts[split].get(each, 0):,}" for split in splits))
            for each in version.classes
        ],
        right=splits,
    )
    if version.facts and (groups := version.facts["duplicates"]["examples"]):
        print_table(
            ("copies", "name", "split", "label"),
            [
                (f"{group['count']:,}", image["name"], image["split"], image["label"])
                for group in groups
                for image in group["images"]
            ],
            right=("copies",),
            wrap=("name", "label"),
        )
    _warn_of_duplicates(version)


def _facts(version: DatasetVersion) -> list[tuple[str, str]]:
    """Sizes and duplicates in words."""
    facts = version.facts
    if facts is None:
        return [("sizes", "not computed: an earlier release froze it")]
    sizes = facts["bytes"]
    shares = (
        f"{count / version.sample_count:.0%} {aspect}"
        for aspect, count in facts["aspect"].items()
        if count
    )
    copies = facts["duplicates"]
    return [
        *((side, _sides_text(facts[side])) for side in ("width", "height")),
        ("shape", ", ".join(shares)),
        (
            "bytes",
            f"{bytes_text(sizes['total'])}; an image {bytes_text(sizes['min'])} to "
            f"{bytes_text(sizes['max'])}, mean {bytes_text(sizes['mean'])}",
        ),
        (
            "duplicates",
            f"{copies['images']:,} images in {count_text(copies['groups'], 'group')} of equal "
            f"ones; {copies['across_splits']:,} across splits, {copies['contradicting']:,} with "
            "different labels"
            if copies["groups"]
            else "none",
        ),
    ]


def _sides_text(sides: Mapping[str, float]) -> str:
    return (
        f"{sides['min']:,} to {sides['max']:,} px, median {sides['median']:,}, "
        f"mean {sides['mean']:,.1f}"
    )


def _warn_of_duplicates(version: DatasetVersion) -> bool:
    """Say what is wrong with images that are the same; True where something is."""
    copies = (version.facts or {}).get("duplicates", {})
    if copies.get("contradicting"):
        warn(
            f"the same image has different labels in {count_text(copies['contradicting'], 'case')}"
            ": no recogniser can answer both; correct the labels and freeze again"
        )
    if copies.get("across_splits"):
        warn(
            "the same image stands in several splits in "
            f"{count_text(copies['across_splits'], 'case')}, so an evaluation is better than it "
            "should be; leave out the copies, or send images without a split of their own, since "
            "equal ones then stay together, and freeze again"
        )
    return bool(copies.get("contradicting") or copies.get("across_splits"))


def _splits(version: DatasetVersion) -> list[str]:
    """The version's splits in the order they are used."""
    order = ("train", "validation", "test")
    return sorted(version.counts, key=lambda split: order.index(split) if split in order else 3)


def _splits_text(version: DatasetVersion) -> str:
    totals = {split: sum(version.counts[split].values()) for split in _splits(version)}
    shown = [f"{total:,} {split}" for split, total in totals.items() if total]
    return ", ".join(shown) or count_text(version.sample_count, "image")


def _classes_text(version: DatasetVersion) -> str:
    return count_text(len(version.classes), "class", "classes")
