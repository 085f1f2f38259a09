"""``darkroom models import | list | show | alias``.

Sharing stands in :mod:`app.cli.sharing`, promotion and what else moves versions in
:mod:`app.cli.catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import catalogue, compare, sharing
from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import answer, note, print_fields, print_json, print_table, say, state_text
from app.cli.follow import finish, follow
from app.cli.inputs import read_classes, send_file
from app.cli.options import AliasToMove, Timeout
from app.cli.words import ago_text, bytes_text, count_text, pairs_text, speed_text, without_recipe

if TYPE_CHECKING:
    from app.client import Darkroom
    from app.client.values import ModelVersion

#: Words for which one looks first, and the command that does it.
_MEANT = {"share": "grant MODEL TENANT --right run", "unshare": "revoke MODEL TENANT"}


class Commands(GuardedGroup):
    """Knows what somebody means who wants to share a model."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` name; an error that says which one was meant."""
        if args and args[0] in _MEANT:
            ctx.fail(f"No such command {args[0]!r}. It is: darkroom models {_MEANT[args[0]]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands, help="Import models, list, share and export them.", no_args_is_help=True
)


@app.command("import")
def import_model(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the model.", show_default=False)
    ],
    arch: Annotated[
        str, typer.Option(help="Architecture, such as squeezenet1_0.", show_default=False)
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="A .safetensors file, upl_…, torchvision:DEFAULT or torchvision:NAME.",
            show_default=False,
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            help="A file of class names (one a line, or JSON), or imagenet.", show_default=False
        ),
    ],
    alias: AliasToMove = "production",
    no_watch: Annotated[
        bool, typer.Option("--no-watch", help="Do not wait for the check.")
    ] = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Check weights against an architecture and register them as an immutable version."""
    names = read_classes(classes)
    with connect(context) as darkroom:
        job = darkroom.models.import_weights(
            name,
            arch=arch,
            weights=_weights(darkroom, weights, quiet=as_json),
            classes=names,
            alias=alias or None,
        )
        if no_watch:
            print_json(job.raw) if as_json else say(job.id)
            return
        job = follow(darkroom, job.id, quiet=as_json, timeout=timeout)
        raise typer.Exit(finish(darkroom, job, as_json=as_json))


def _weights(darkroom: Darkroom, text: str, *, quiet: bool) -> str:
    """A reference the service knows; a local file is uploaded."""
    if text.startswith(("torchvision:", "upl_")) and not Path(text).exists():
        return text
    added = send_file(darkroom, Path(text), kind="weights", quiet=quiet)
    if not quiet:
        note(f"upload {added.upload.id}")
    return added.upload.id


@app.command("list")
def list_models(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List model versions with their aliases and scores."""
    with connect(context) as darkroom:
        names = [name] if name else [model.name for model in darkroom.models.list()]
        rows = [(each, version) for each in names for version in darkroom.models.versions(each)]
    if as_json:
        print_json([version.raw for _, version in rows])
        return
    print_table(
        ("model", "alias", "state", "arch", "classes", "size", "accuracy", "made"),
        [
            (
                f"{each}@{version.number}",
                " ".join(f"@{alias}" for alias in version.aliases),
                state_text(version.state),
                version.arch,
                f"{len(version.classes):,}" if version.classes else "",
                bytes_text(version.weights_bytes) if version.weights_bytes else "",
                _accuracy(version),
                ago_text(version.created_at),
            )
            for each, version in rows
        ],
        right=("classes", "size", "accuracy"),
        spare=("classes", "size", "made"),
        empty="no models",
    )


@app.command()
def show(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME (@production), NAME@ALIAS or NAME@NUMBER.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Show one model version: preprocessing, classes, digests, scores, lineage."""
    with connect(context) as darkroom:
        version = darkroom.models.find(reference)
    if as_json:
        print_json(version.raw)
        return
    classes = ", ".join(version.classes[:8]) + (" …" if len(version.classes) > 8 else "")
    print_fields(
        (
            ("model", f"{version.model}@{version.number}"),
            ("id", version.id),
            ("state", state_text(version.state)),
            ("aliases", " ".join(f"@{alias}" for alias in version.aliases) or None),
            ("arch", version.arch),
            (
                "parameters",
                count_text(version.parameter_count) if version.parameter_count else None,
            ),
            (
                "operations",
                f"{count_text(version.macs)} multiply-adds an image" if version.macs else None,
            ),
            ("weights", bytes_text(version.weights_bytes) if version.weights_bytes else None),
            ("weights sha256", version.weights_sha256),
            ("preprocess", pairs_text(version.preprocess)),
            ("preprocess sha256", version.preprocess_sha256),
            ("classes", f"{len(version.classes):,}: {classes}" if version.classes else None),
            ("scores", pairs_text(_main_scores(version.scores))),
            *(("speed", speed_text(speed)) for speed in version.speeds),
            ("calibration", pairs_text(version.calibration)),
            ("lineage", pairs_text(without_recipe(version.lineage))),
            ("recipe", pairs_text((version.lineage or {}).get("recipe"))),
            ("made", ago_text(version.created_at)),
        )
    )


@app.command("alias")
def set_alias(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production.")],
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Version to point at.")],
    as_json: JsonFlag = False,
) -> None:
    """Point MODEL@ALIAS at a version."""
    with connect(context) as darkroom:
        version = darkroom.models.set_alias(name, alias.removeprefix("@"), number)
    answer(version.raw, f"{name}@{alias.removeprefix('@')} is now {name}@{number}", as_json=as_json)


def _main_scores(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """The scores of all images; those by class and the confusions are for ``--json``."""
    return {name: value for name, value in (scores or {}).items() if isinstance(value, int | float)}


def _accuracy(version: ModelVersion) -> str:
    accuracy = (version.scores or {}).get("accuracy")
    return f"{accuracy:.4f}" if isinstance(accuracy, (int, float)) else ""


for command in (
    catalogue.promote,
    catalogue.rollback,
    catalogue.gate,
    catalogue.moves,
    catalogue.scores,
    compare.compare,
    catalogue.archive,
    catalogue.restore,
    catalogue.delete,
):
    app.command()(command)
for shared in (sharing.grant, sharing.revoke, sharing.grants, sharing.shared, sharing.export):
    app.command()(shared)
