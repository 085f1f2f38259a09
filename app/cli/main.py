"""The command line: ``darkroom``."""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated, Any

import typer

from app.cli import audit, datasets, keys, models, sealing, tenants, uploads, webhooks
from app.cli.backup import backup, restore
from app.cli.connect import GuardedGroup, JsonFlag, Service, connect
from app.cli.control import cancel, pause, resume, retry
from app.cli.demo import demo, demo_photos
from app.cli.doctor import doctor
from app.cli.evaluate import evaluate
from app.cli.events import events
from app.cli.exits import EXIT_CODES
from app.cli.finetune import finetune
from app.cli.jobs import export, list_jobs, results, show_job, watch
from app.cli.locations import show_locations
from app.cli.metrics import metrics
from app.cli.migrate import migrate
from app.cli.search import search, trials
from app.cli.settings import settings
from app.cli.submit import submit
from app.cli.workers import workers

_IMAGES = "Images in, results out"
_MODELS = "Models and data"
_SERVICE = "The service"

#: Loaded only when it runs: it brings the database and every local part along.
_UP = "up"


class Commands(GuardedGroup):
    """The root: loads `up` only when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` name, the real one of `up` included."""
        if args and args[0] == _UP:
            from app.cli.up import up

            app = typer.Typer(add_completion=False)
            app.command(_UP, help=_unwrapped(up))(up)
            command = typer.main.get_command(app)
            return _UP, command, args[1:]
        return super().resolve_command(ctx, args)


def _epilog() -> str:
    width = max(len(str(code.value)) for code in EXIT_CODES)
    lines = [f"{code.value:>{width}}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["Exit codes", *lines])


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_epilog(),
)


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="Address of the service; else DARKROOM_URL.", show_default=False),
    ] = None,
) -> None:
    """Hand over a batch of images, walk away, get labelled results.

    The service is found by DARKROOM_URL and DARKROOM_API_KEY, or by what `darkroom up`
    left on this machine. Every command that answers takes --json.
    """
    service = context.ensure_object(Service)
    service.url = url or service.url


@app.command(_UP, rich_help_panel=_SERVICE)
def _up() -> None:
    """Start everything on this machine: parts, API, dispatcher, workers."""
    raise AssertionError("resolve_command hands out the real one")


@app.command(rich_help_panel=_SERVICE)
def openapi(context: typer.Context, as_json: JsonFlag = True) -> None:  # noqa: ARG001  always JSON
    """Print the service's OpenAPI document."""
    from app.cli.console import print_json

    with connect(context) as darkroom:
        print_json(darkroom.openapi())


app.command(rich_help_panel=_IMAGES)(submit)
app.command(rich_help_panel=_IMAGES)(watch)
app.command("jobs", rich_help_panel=_IMAGES)(list_jobs)
app.command("job", rich_help_panel=_IMAGES)(show_job)
app.command(rich_help_panel=_IMAGES)(events)
app.command(rich_help_panel=_IMAGES)(results)
app.command(rich_help_panel=_IMAGES)(export)
app.command(rich_help_panel=_IMAGES)(cancel)
app.command(rich_help_panel=_IMAGES)(pause)
app.command(rich_help_panel=_IMAGES)(resume)
app.command(rich_help_panel=_IMAGES)(retry)
app.add_typer(uploads.app, name="uploads", rich_help_panel=_IMAGES)
app.add_typer(datasets.app, name="datasets", rich_help_panel=_MODELS)
app.add_typer(models.app, name="models", rich_help_panel=_MODELS)
app.command(rich_help_panel=_MODELS)(finetune)
app.command(rich_help_panel=_MODELS)(metrics)
app.command(rich_help_panel=_MODELS)(search)
app.command(rich_help_panel=_MODELS)(trials)
app.command(rich_help_panel=_MODELS)(evaluate)
app.add_typer(keys.app, name="keys", rich_help_panel=_SERVICE)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=_SERVICE)
tenants.app.command("locations")(show_locations)
app.add_typer(tenants.app, name="tenants", rich_help_panel=_SERVICE)
app.add_typer(sealing.app, name="sealing", rich_help_panel=_SERVICE)
app.add_typer(audit.app, name="audit", rich_help_panel=_SERVICE)
app.command(rich_help_panel=_SERVICE)(workers)
app.command(rich_help_panel=_SERVICE)(settings)
app.command(rich_help_panel=_SERVICE)(doctor)
app.command(rich_help_panel=_SERVICE)(migrate)
app.command(rich_help_panel=_SERVICE)(backup)
app.command(rich_help_panel=_SERVICE)(restore)
app.command(hidden=True)(demo)
app.command("demo-photos", hidden=True)(demo_photos)


def _unwrapped(function: Any) -> str:
    """A docstring whose paragraphs are one line each, which the terminal wraps at its own width."""
    paragraphs = cleandoc((function and function.__doc__) or "").split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)


def _unwrap_help(group: typer.Typer) -> None:
    if group.registered_callback is not None and group.registered_callback.callback is not None:
        group.registered_callback.help = _unwrapped(group.registered_callback.callback)
    for command in group.registered_commands:
        command.help = _unwrapped(command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _unwrap_help(inner.typer_instance)


_unwrap_help(app)


def main() -> None:
    """Run the command line; the process ends with one of :data:`EXIT_CODES`."""
    app()


if __name__ == "__main__":
    main()
