"""``darkroom up``: one command that starts everything on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.errors import DarkroomError
from app.settings import read_environment
from app.stack.up import DEFAULT_DATA_DIR, UpOptions, run_up


def up(
    data: Annotated[
        Path, typer.Option(envvar="DARKROOM_DATA", help="Folder that holds all data.")
    ] = DEFAULT_DATA_DIR,
    host: Annotated[
        str, typer.Option(envvar="DARKROOM_API_HOST", help="Address the API listens on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="DARKROOM_API_PORT", min=0, max=65535, help="Port of the API; 0: any free one."
        ),
    ] = 8080,
    inference_workers: Annotated[
        int, typer.Option(min=0, help="Processes that recognise images.")
    ] = 1,
    api_threads: Annotated[
        int, typer.Option(envvar="DARKROOM_API_THREADS", min=1, help="Threads of the API.")
    ] = 16,
    drain_seconds: Annotated[
        float,
        typer.Option(
            envvar="DARKROOM_DRAIN_SECONDS", min=1, help="Time workers have to let go at the end."
        ),
    ] = 25.0,
) -> None:
    """Start PostgreSQL, Valkey, S3, the API, the dispatcher and the workers.

    A part whose address is in the environment (DATABASE_URL, REDIS_URL, S3_ENDPOINT_URL) is
    not started. Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 something did not start, 2 wrong
    usage, 8 the folder is in use, 9 the port is taken, 10 the disk is full.
    """
    options = UpOptions(
        data_dir=data,
        host=host,
        port=port,
        inference_workers=inference_workers,
        api_threads=api_threads,
        drain_seconds=drain_seconds,
    )
    try:
        run_up(options, environ=read_environment(), say=_say)
    except DarkroomError as error:
        typer.echo(f"darkroom up: {error.detail}", err=True)
        raise typer.Exit(getattr(error, "exit_code", 1)) from None


def _say(line: str) -> None:
    """Print at once; a terminal that has gone must not stop the draining."""
    try:
        print(line, flush=True)
    except OSError:
        return


if __name__ == "__main__":
    typer.run(up)
