"""What all commands share: how to reach the service, and how an error ends the process."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli.exits import Exit

if TYPE_CHECKING:
    from app.client import ApiError, Darkroom

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@dataclass(slots=True)
class Service:
    """The service that the commands talk to; tests hand in a transport of their own."""

    url: str | None = None
    http: Any = None

    def connect(self) -> Darkroom:
        """A client; a context manager."""
        from app.client import Darkroom

        return Darkroom(self.url, http=self.http, on_retry=_tell_wait)


def _tell_wait(error: ApiError, seconds: float) -> None:
    """Say what a command waits for where a quota is used up; a short outage is worth no line."""
    from app.cli.console import note
    from app.cli.words import duration_text

    if error.status == 429:
        note(f"waiting {duration_text(seconds)}: {error.detail} [{error.code}]")


def connect(context: typer.Context) -> Darkroom:
    """The client for a command; a context manager."""
    service: Service = context.obj
    return service.connect()


class GuardedGroup(TyperGroup):
    """Commands whose errors are sentences with a code and an exit code, never tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into an exit."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of the pipe has enough; Python must not complain while closing it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.DONE) from None
        except typer.BadParameter as error:
            # The words of the library that checks choices, before the sentence.
            error.message = error.message.removeprefix("Value error, ")
            raise
        except Exception as error:
            code = _explain(error)
            if code is None:
                raise
            raise typer.Exit(code) from None


def _explain(error: Exception) -> Exit | None:
    """Print the error; its exit code, or None where typer itself handles it."""
    from app.cli.console import print_error

    if type(error).__module__.startswith("typer."):
        return None
    client = sys.modules.get("app.client.errors")
    if client is not None and isinstance(error, client.ApiError):
        print_error(
            error.detail,
            error.code,
            errors=error.errors,
            total=error.errors_total,
            request_id=error.request_id,
        )
        return exit_of(error)
    from app.errors import DarkroomError, UnavailableError

    if isinstance(error, DarkroomError):
        print_error(error.detail, error.code, errors=error.errors, total=error.total)
        if isinstance(error, UnavailableError):
            return Exit.UNREACHABLE
        # Errors of the local parts bring their own.
        return Exit(getattr(error, "exit_code", Exit.FAILED))
    if os.environ.get("DARKROOM_DEBUG"):
        return None
    print_error(
        f"{type(error).__name__}: {error} (DARKROOM_DEBUG=1 shows where)", "fault_of_the_command"
    )
    return Exit.FAULT


def exit_of(error: ApiError) -> Exit:
    """The exit code of an error of the client."""
    from app.client.errors import (
        DAMAGED,
        LOCAL_FILE,
        UNREACHABLE,
        WAIT_TIMEOUT,
    )

    own = {
        UNREACHABLE: Exit.UNREACHABLE,
        WAIT_TIMEOUT: Exit.TIMEOUT,
        LOCAL_FILE: Exit.FAILED,
        DAMAGED: Exit.FAILED,
    }
    if error.status == 0:
        return own.get(error.code, Exit.FAILED)
    return Exit.UNREACHABLE if error.status in (502, 503, 504) else Exit.REFUSED
