"""``darkroom models grant | revoke | grants | shared | export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import answer, print_json, print_table, say
from app.cli.inputs import check_output
from app.cli.options import Force
from app.cli.progress import TransferBar
from app.cli.words import ago_text, bytes_text

if TYPE_CHECKING:
    from app.client import Darkroom

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)
]
TenantName = Annotated[
    str, typer.Argument(metavar="TENANT", help="Name of the other tenant.", show_default=False)
]


class Right(StrEnum):
    """What another tenant may do."""

    RUN = "run"
    EVALUATE = "evaluate"
    EXPORT = "export"


class Answers(StrEnum):
    """How exactly it is answered."""

    FULL = "full"
    ROUNDED = "rounded"
    TOP1 = "top1"


def grant(
    context: typer.Context,
    name: ModelName,
    tenant: TenantName,
    right: Annotated[
        list[Right],
        typer.Option(
            metavar="RIGHT",
            help="run, evaluate or export; repeat for more. Those not named end.",
            show_default=False,
        ),
    ],
    answers: Annotated[
        Answers, typer.Option(help="Exact scores, hundredths, or the best class in tenths.")
    ] = Answers.ROUNDED,
    items_per_day: Annotated[
        int | None,
        typer.Option(min=1, help="Images a day (UTC); any number if left out.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let another tenant use a model, just so and not otherwise."""
    with connect(context) as darkroom:
        given = darkroom.models.grant(
            name,
            tenant,
            [one.value for one in right],
            answers=answers.value,
            max_items_per_day=items_per_day,
        )
    text = (
        f"{tenant} may {' and '.join(given.rights)} {name}, {_terms(given.answers, items_per_day)}"
    )
    answer(given.raw, text, as_json=as_json)


def revoke(
    context: typer.Context, name: ModelName, tenant: TenantName, as_json: JsonFlag = False
) -> None:
    """Take every right on a model back from a tenant."""
    with connect(context) as darkroom:
        darkroom.models.revoke(name, tenant)
    done = {"model": name, "tenant": tenant, "revoked": True}
    answer(done, f"{tenant} may do nothing with {name} any more", as_json=as_json)


def grants(context: typer.Context, name: ModelName, as_json: JsonFlag = False) -> None:
    """List who else may use a model."""
    with connect(context) as darkroom:
        found = list(darkroom.models.grants(name))
    if as_json:
        print_json([each.raw for each in found])
        return
    print_table(
        ("tenant", "rights", "answers", "today", "a day", "since"),
        [
            (
                each.tenant,
                " ".join(each.rights),
                each.answers,
                f"{each.items_today:,}",
                _a_day(each.max_items_per_day),
                ago_text(each.created_at),
            )
            for each in found
        ],
        right=("today", "a day"),
        spare=("since",),
        empty="nobody else may use it",
    )


def shared(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the models that other tenants share with this one."""
    with connect(context) as darkroom:
        found = list(darkroom.models.shared())
    if as_json:
        print_json([each.raw for each in found])
        return
    print_table(
        ("model", "aliases", "versions", "rights", "answers", "today", "a day"),
        [
            (
                each.model,
                " ".join(f"@{alias}" for alias in each.aliases),
                " ".join(f"@{number}" for number in each.version_numbers),
                " ".join(each.rights),
                each.answers,
                f"{each.items_today:,}",
                _a_day(each.max_items_per_day),
            )
            for each in found
        ],
        right=("today", "a day"),
        spare=("answers", "today", "a day"),
        wrap=("aliases", "versions"),
        empty="nobody shares a model with this tenant",
    )


def export(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="NAME@3 or OWNER/NAME@3; or @ALIAS.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File or folder to write.", show_default=False)
    ],
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a version's weights to a file, verified, and beside it a .json that describes them."""
    with connect(context) as darkroom:
        model, number = _find(darkroom, reference)
        file = output
        if output.is_dir():
            file = output / f"{model.rpartition('/')[2]}-{number}.safetensors"
        for each in (file, file.with_suffix(".json")):
            check_output(each, each.name, force=force)
        if as_json:
            written = darkroom.models.export(model, number, file)
            beside = written.with_suffix(".json")
            print_json({"file": str(written), "spec": str(beside), "model": f"{model}@{number}"})
            return
        with TransferBar(f"fetching {model}@{number}") as bar:
            written = darkroom.models.export(model, number, file, bar.moved)
    say(
        f"{written}  {bytes_text(written.stat().st_size)}  with {written.with_suffix('.json').name}"
    )


def _find(darkroom: Darkroom, reference: str) -> tuple[str, int]:
    """Name and number of the version that a reference means."""
    model, _, selector = reference.partition("@")
    if selector.isascii() and selector.isdigit():
        return model, int(selector)
    if "/" not in model:
        return model, darkroom.models.find(reference).number
    aliases = next((each.aliases for each in darkroom.models.shared() if each.model == model), {})
    wanted = selector or "production"
    if wanted not in aliases:
        raise typer.BadParameter(
            f"no model {reference} is shared with this tenant; see darkroom models shared",
            param_hint="MODEL",
        )
    return model, aliases[wanted]


def _terms(answers: str, items_per_day: int | None) -> str:
    limit = f", at most {items_per_day:,} images a day" if items_per_day else ""
    return f"answers {answers}{limit}"


def _a_day(limit: int | None) -> str:
    return f"{limit:,}" if limit else "any"
