"""``darkroom events``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import note, print_json_lines, say
from app.cli.options import JobId

if TYPE_CHECKING:
    from app.client.values import Event


def events(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more until the job is over.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show what happened to a job, one event a line."""
    found = 0
    with connect(context) as darkroom:
        for event in darkroom.jobs.events(job_id, after=after, follow=follow):
            found += 1
            if as_json:
                print_json_lines([event.raw])
            else:
                say(_line(event))
            # Whoever reads a pipe wants each event as it happens.
            sys.stdout.flush()
    if not found and not as_json:
        note("no events")


def _line(event: Event) -> str:
    at = event.created_at.astimezone().strftime("%H:%M:%S") if event.created_at else ""
    counts: Mapping[str, Any] = event.data.get("counts") or {}
    progress: Mapping[str, Any] = event.data.get("progress") or {}
    words = [f"{event.id:>5}", at, f"{event.type:<24}"]
    if counts.get("total"):
        words.append(f"{counts.get('done', 0):,}/{counts['total']:,}")
        if counts.get("failed"):
            words.append(f"{counts['failed']:,} failed")
    elif progress.get("steps"):
        words.append(f"{progress.get('step', 0)}/{progress['steps']} {progress.get('unit', '')}s")
    if event.data.get("error_code"):
        words.append(f"[{event.data['error_code']}]")
    return "  ".join(words).rstrip()
