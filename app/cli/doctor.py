"""``darkroom doctor``: looks at every part and says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag, Service
from app.cli.console import print_json, stdout
from app.cli.exits import Exit

if TYPE_CHECKING:
    from app.cli.checks import Check


def doctor(
    context: typer.Context,
    torch: Annotated[
        bool, typer.Option("--torch/--no-torch", help="Import torch, which takes seconds.")
    ] = True,
    security: Annotated[
        bool, typer.Option("--security", help="Look for weak settings instead.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check settings, parts, workers and disk; exit code 1 where something is broken.

    With DATABASE_URL set, the parts are looked at from here as a process of the service would
    see them; in any case the service is asked as a client would. `--security` looks for what a
    stranger might use: at these settings, or at the data folder of a `darkroom up` that runs.
    """
    found: list[Check] = []
    checks = _security_checks() if security else _checks(context.obj, with_torch=torch)
    for check in checks:
        found.append(check)
        if not as_json:
            _print(check)
    failed = any(check.verdict == "fail" for check in found)
    if as_json:
        print_json([asdict(check) for check in found])
    raise typer.Exit(Exit.FAILED if failed else Exit.DONE)


def _checks(service: Service, *, with_torch: bool) -> Iterator[Check]:
    from app.cli.checks import Check, check_disk, check_parts, check_torch
    from app.errors import SettingsError
    from app.settings import load_settings

    folder = Path()
    if _is_inside():
        try:
            settings = load_settings()
        except SettingsError as error:
            yield Check("settings", "fail", error.detail, "see `darkroom settings`")
        else:
            yield Check("settings", "ok", "all valid")
            yield from check_parts(settings)
            folder = settings.cache_dir
    yield from _client_checks(service)
    if with_torch:
        yield check_torch()
    yield check_disk(folder)


def _security_checks() -> Iterator[Check]:
    from app.cli.security import check_security
    from app.cli.tenants import data_folder, find_database
    from app.settings import load_settings
    from app.stack.secrets import load_secrets

    found = find_database()
    folder = data_folder() if found else None
    if folder is not None:
        found.setdefault("key_pepper", load_secrets(folder).key_pepper)
    yield from check_security(load_settings(**found), folder)


def _is_inside() -> bool:
    """Whether this environment is one of the service's own processes, parts named."""
    return bool(os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE"))


def _client_checks(service: Service) -> Iterator[Check]:
    """The service as a client sees it: there, ready, the key good, workers alive."""
    from app.cli.checks import SILENT_SECONDS, Check, workers_verdict
    from app.client import ApiError
    from app.queues.names import Queue

    with service.connect() as darkroom:
        where = darkroom.address.url
        named_by = f" (from {darkroom.address.file})" if darkroom.address.file else ""
        try:
            darkroom.transport.call("GET", "/readyz", tries=1)
            yield Check("service", "ok", f"{where} is ready{named_by}")
        except ApiError as error:
            advice = "start it with `darkroom up`, or set DARKROOM_URL"
            if error.status:
                advice = "its own parts do not answer; run doctor where it runs"
            yield Check("service", "fail", error.detail, advice)
            return
        try:
            next(darkroom.jobs.list(), None)
            yield Check("key", "ok", "accepted")
        except ApiError as error:
            yield Check("key", "fail", error.detail, "set DARKROOM_API_KEY")
            return
        if _is_inside():
            return
        try:
            rows = darkroom.workers()
        except ApiError as error:
            yield Check("workers", "warn", error.detail, "only a key with scope admin sees them")
            return
    alive: dict[str, int] = {}
    silent = datetime.now(UTC) - timedelta(seconds=SILENT_SECONDS)
    for row in rows:
        if row.get("gone_at") is None and datetime.fromisoformat(row["last_seen_at"]) > silent:
            queue = str(row.get("queue"))
            alive[queue] = alive.get(queue, 0) + 1
    yield workers_verdict(alive, [queue.value for queue in Queue])


def _print(check: Check) -> None:
    from rich.text import Text

    from app.cli.words import STATE_STYLE

    line = Text()
    line.append(f"{check.verdict:<4}", style=STATE_STYLE[check.verdict])
    line.append(f"  {check.name:<12}  ", style="bold")
    line.append(check.detail)
    console = stdout()
    console.print(line, soft_wrap=True)
    if check.verdict != "ok" and check.advice:
        console.print(f"{'':18}  → {check.advice}", style="dim", markup=False, soft_wrap=True)
