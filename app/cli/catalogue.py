"""``darkroom models promote | rollback | gate | moves | archive | restore | delete | scores``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import answer, note, print_json, print_table
from app.cli.follow import follow
from app.cli.words import ago_text
from app.models.states import GateMetric

if TYPE_CHECKING:
    from app.client import Darkroom
    from app.client.values import Alias, Job

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)
]
VersionName = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME@NUMBER, or NAME@ALIAS.", show_default=False)
]
AliasOption = Annotated[str, typer.Option(help="Which alias.")]
Margin = Annotated[
    float, typer.Option(min=-1, max=1, help="By how much it must be better; below 0: worse.")
]
Minimum = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="What it must have at least.", show_default=False),
]
OnDataset = Annotated[
    str | None,
    typer.Option("--dataset", "-d", help="Compare on this dataset only.", show_default=False),
]


def promote(
    context: typer.Context,
    reference: VersionName,
    alias: AliasOption = "production",
    metric: Annotated[
        GateMetric | None,
        typer.Option(help="What to compare where the alias has no gate.", show_default=False),
    ] = None,
    margin: Margin = 0.0,
    minimum: Minimum = None,
    dataset: OnDataset = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Evaluate both on the same images first, if need be."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at a version, if it is good enough.

    The version is compared with the one in place, on the newest images that both were evaluated
    on. A gate of the alias decides; without one, --metric and what follows it.
    """
    with connect(context) as darkroom:

        def wait(job: Job) -> Job:
            if not as_json:
                names = [
                    each.reference for each in (job.model_version, job.dataset_version) if each
                ]
                note(f"evaluating {' on '.join(names)}: job {job.id}")
            return follow(darkroom, job.id, quiet=as_json)

        name, number = find_version(darkroom, reference)
        place = _place(darkroom, name, alias)
        if place is not None and place.version == number:
            answer(place.raw, f"{name}@{alias} is {name}@{number} already", as_json=as_json)
            return
        moved = darkroom.catalogue.promote(
            name,
            number,
            alias,
            metric=metric,
            margin=margin,
            minimum=minimum,
            dataset=dataset,
            evaluate=evaluate,
            wait=wait,
        )
    reason = (moved.verdict or {}).get("reason", "")
    answer(moved.raw, f"{name}@{alias} is now {name}@{number}: {reason}", as_json=as_json)


def rollback(
    context: typer.Context,
    name: ModelName,
    alias: AliasOption = "production",
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at the version that it pointed to before; again goes further back."""
    with connect(context) as darkroom:
        move = darkroom.catalogue.roll_back(name, alias)
    text = f"{name}@{alias} is {name}@{move.to_version} again, after {name}@{move.from_version}"
    answer(move.raw, text, as_json=as_json)


def gate(
    context: typer.Context,
    name: ModelName,
    alias: AliasOption = "production",
    metric: Annotated[
        GateMetric | None, typer.Option(help="Set a gate that compares this.", show_default=False)
    ] = None,
    margin: Margin = 0.0,
    minimum: Minimum = None,
    dataset: OnDataset = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the gate away.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the gate before an alias, set it with --metric, or --remove it."""
    if remove and metric is not None:
        raise typer.BadParameter(
            "takes the gate away, so it goes with no --metric", param_hint="--remove"
        )
    with connect(context) as darkroom:
        if remove:
            darkroom.catalogue.remove_gate(name, alias)
            done = {"model": name, "alias": alias, "gate": None}
            answer(done, f"{name}@{alias} has no gate any more", as_json=as_json)
            return
        if metric is None:
            found = darkroom.catalogue.alias(name, alias)
            said = f"{name}@{alias} is version {found.version}; "
            said += _rule_text(found.gate) if found.gate else "it has no gate"
            answer(found.raw, said, as_json=as_json)
            return
        rule = darkroom.catalogue.set_gate(
            name, alias, metric=metric, margin=margin, minimum=minimum, dataset=dataset
        )
    answer(rule, f"{name}@{alias} moves on: {_rule_text(rule)}", as_json=as_json)


def moves(
    context: typer.Context,
    name: ModelName,
    alias: AliasOption = "production",
    as_json: JsonFlag = False,
) -> None:
    """List where an alias has pointed, and why it moved."""
    with connect(context) as darkroom:
        found = list(darkroom.catalogue.moves(name, alias))
    if as_json:
        print_json([each.raw for each in found])
        return
    print_table(
        ("when", "how", "from", "to", "why"),
        [
            (
                ago_text(each.created_at),
                each.kind.replace("_", " "),
                "" if each.from_version is None else f"@{each.from_version}",
                f"@{each.to_version}",
                (each.verdict or {}).get("reason", ""),
            )
            for each in found
        ],
        wrap=("why",),
        spare=("why",),
        empty="it never moved",
    )


def scores(context: typer.Context, reference: VersionName, as_json: JsonFlag = False) -> None:
    """List how good a version was, on which images."""
    with connect(context) as darkroom:
        name, number = find_version(darkroom, reference)
        found = list(darkroom.catalogue.evaluations(name, number))
    if as_json:
        print_json([each.raw for each in found])
        return
    print_table(
        ("dataset", "split", "images", "accuracy", "precision", "recall", "F1", "when"),
        [
            (
                each.dataset,
                each.split or "all",
                f"{each.items:,}",
                *(_score(each.metrics.get(word)) for word in get_args(GateMetric)),
                ago_text(each.created_at),
            )
            for each in found
        ],
        right=("images", "accuracy", "precision", "recall", "F1"),
        spare=("when", "precision", "recall"),
        empty="it was not evaluated yet",
    )


def archive(context: typer.Context, reference: VersionName, as_json: JsonFlag = False) -> None:
    """Let a version take no new jobs; those under way go on."""
    with connect(context) as darkroom:
        name, number = find_version(darkroom, reference)
        version = darkroom.catalogue.archive(name, number)
    answer(version.raw, f"{name}@{number} takes no new jobs", as_json=as_json)


def restore(context: typer.Context, reference: VersionName, as_json: JsonFlag = False) -> None:
    """Let an archived version take jobs again."""
    with connect(context) as darkroom:
        name, number = find_version(darkroom, reference)
        version = darkroom.catalogue.restore(name, number)
    answer(version.raw, f"{name}@{number} takes jobs again", as_json=as_json)


def delete(context: typer.Context, reference: VersionName, as_json: JsonFlag = False) -> None:
    """Give up an archived or failed version: its weights go once no open job uses them."""
    with connect(context) as darkroom:
        name, number = find_version(darkroom, reference)
        version = darkroom.catalogue.delete(name, number)
    text = (
        f"{name}@{number} is deleted"
        if version.state == "deleted"
        else f"the weights of {name}@{number} go in some minutes, once no open job uses them; "
        f"until then: darkroom models restore {name}@{number}"
    )
    answer(version.raw, text, as_json=as_json)


def find_version(darkroom: Darkroom, reference: str) -> tuple[str, int]:
    """The name and number that ``NAME@NUMBER``, ``NAME@ALIAS`` or ``NAME`` means."""
    name, _, selector = reference.partition("@")
    if selector.isascii() and selector.isdigit():
        return name, int(selector)
    return name, darkroom.models.find(reference).number


def _place(darkroom: Darkroom, name: str, alias: str) -> Alias | None:
    """Where the alias points; None where it points nowhere yet."""
    from app.client import ApiError

    try:
        return darkroom.catalogue.alias(name, alias)
    except ApiError as error:
        # A key may move aliases and yet not read where they point.
        if error.code not in ("model_not_found", "scope_missing"):
            raise
    return None


def _rule_text(rule: Mapping[str, Any]) -> str:
    text = f"its {rule['metric']} must "
    if rule["margin"]:
        words = "above" if rule["margin"] > 0 else "below"
        bound = "at least" if rule["margin"] > 0 else "at most"
        text += f"be {bound} {abs(rule['margin']):g} {words} that of the version in place"
    else:
        text += "not be below that of the version in place"
    if rule["minimum"] is not None:
        text += f", and {rule['minimum']:g} at least"
    return text + (f", on {rule['dataset']}" if rule["dataset"] else "")


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
