"""Runs a story against a service of its own, started for it and stopped after it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import typer

from app.cli.console import note, print_error, say
from app.cli.exits import Exit
from app.client import ApiError, Darkroom
from app.errors import DarkroomError
from app.stack.supervisor import Supervisor
from app.stack.up import UpOptions, run_up

#: A service that is running elsewhere must neither be used nor be disturbed.
_FOREIGN = (
    "DATABASE_URL",
    "SYSTEM_DATABASE_URL",
    "ADMIN_DATABASE_URL",
    "REDIS_URL",
    "S3_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "DARKROOM_BUCKET",
    "DARKROOM_KEY_PEPPER",
    "DARKROOM_SEALING_KEYS",
    "DARKROOM_CACHE_DIR",
    "DARKROOM_URL",
    "DARKROOM_API_KEY",
    "DARKROOM_DATA",
)


def run_story(out: Path, story: Callable[[Darkroom], str]) -> int:
    """Start a service in ``out/data``, tell the story, stop; prints the story's last line.

    Returns the exit code: 0, or what the story or the start ended with.
    """
    ended: Future[str] = Future()

    def ready(supervisor: Supervisor) -> None:
        # The supervisor keeps the main thread: it restarts what dies, and hears Ctrl-C.
        threading.Thread(
            target=_tell, args=(story, options.data_dir, ended, supervisor), daemon=True
        ).start()

    options = UpOptions(data_dir=(out / "data").absolute(), port=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        run_up(options, environ=own_environment(os.environ), say=_say_first_line, ready=ready)
    except DarkroomError as error:
        print_error(error.detail, error.code)
        return int(getattr(error, "exit_code", Exit.FAILED))
    if not ended.done():
        note("the demo was stopped before its end")
        return int(Exit.INTERRUPTED)
    try:
        last_line = ended.result()
    except typer.Exit as stopped:
        return stopped.exit_code
    except ApiError as error:
        print_error(str(error), error.code)
        return int(Exit.FAILED)
    say("")
    say(last_line)
    return int(Exit.DONE)


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without anything that points at another service."""
    return {
        name: value for name, value in environ.items() if name.removesuffix("_FILE") not in _FOREIGN
    }


def _tell(
    story: Callable[[Darkroom], str],
    data_dir: Path,
    ended: Future[str],
    supervisor: Supervisor,
) -> None:
    try:
        address = _address(data_dir)
        with Darkroom(*address) as darkroom:
            ended.set_result(story(darkroom))
    except BaseException as error:
        ended.set_exception(error)
    finally:
        supervisor.request_stop()


def _address(data_dir: Path) -> tuple[str, str]:
    """Address and key of the service that keeps its data there."""
    client = json.loads((data_dir / "client.json").read_text())
    return client["url"], client["key"]


def _say_first_line(text: str) -> None:
    """What the stack has to say, without the key that it shows to people who start it."""
    if "API key" not in text:
        note(text.splitlines()[0])
