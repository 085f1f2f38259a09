"""``darkroom backup`` and ``darkroom restore``: the data folder of ``darkroom up``, kept safe."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import JsonFlag
from app.cli.exits import Exit

if TYPE_CHECKING:
    from app.stack.bundle import Manifest

_DEFAULT_DATA = Path("darkroom-data")


def backup(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="Folder to make; it must not exist.")
    ],
    data: Annotated[
        Path, typer.Option(envvar="DARKROOM_DATA", help="Data folder of `darkroom up`.")
    ] = _DEFAULT_DATA,
    as_json: JsonFlag = False,
) -> None:
    """Back up a data folder: database, objects and keys, in one folder that only you can read.

    Works while `darkroom up` runs on it, and while it is stopped. The backup takes its name
    last: one that was broken off is never taken for whole. It holds every secret of the
    service; keep it as you keep those.
    """
    from app.cli.console import note, print_json, warn
    from app.stack.backup import run_backup

    with _stoppable():
        manifest = run_backup(
            target, data, bucket=os.environ.get("DARKROOM_BUCKET") or "darkroom", say=note
        )
    if as_json:
        print_json(_summary(manifest))
    else:
        _say_manifest(f"backup {target}", manifest)
        note(f"restore it with: darkroom restore {shlex.quote(str(target))} --data NEW-FOLDER")
    if manifest.lost:
        shown = ", ".join(manifest.lost[:5])
        warn(
            f"{len(manifest.lost):,} objects that the database names were missing or damaged in "
            f"{data} already: {shown}. All else is backed up"
        )
        raise typer.Exit(Exit.PARTIAL)


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="Folder that `darkroom backup` made.")
    ],
    data: Annotated[
        Path, typer.Option(envvar="DARKROOM_DATA", help="Data folder to make; empty or not there.")
    ] = _DEFAULT_DATA,
    force: Annotated[
        bool,
        typer.Option("--force", help="Put what is in the folder aside first; deletes nothing."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the backup with its digests.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a data folder from a backup, for `darkroom up` to serve.

    Every file is compared with its digest first, and the folder takes its name last. Keys,
    jobs and files are as they were; open jobs go on. An older backup is brought up to date, a
    newer one refused.
    """
    from app.cli.console import note, print_json
    from app.stack.restore import check_backup, run_restore

    with _stoppable():
        if check:
            manifest = check_backup(source, say=note)
        else:
            manifest = run_restore(source, data, force=force, say=note)
    if as_json:
        print_json(_summary(manifest))
        return
    if check:
        _say_manifest(f"{source} is whole", manifest)
        return
    _say_manifest(f"restored {data}", manifest)
    note(f"start it with: darkroom up --data {shlex.quote(str(data))}")


def _summary(manifest: Manifest) -> dict[str, object]:
    return {
        "darkroom": manifest.darkroom,
        "schema": manifest.schema,
        "created_at": manifest.created_at,
        "counts": manifest.counts,
        "lost": manifest.lost,
    }


def _say_manifest(what: str, manifest: Manifest) -> None:
    from app.cli.console import say
    from app.cli.words import bytes_text

    counts = manifest.counts
    say(
        f"{what}: {counts['jobs']:,} jobs ({counts['open_jobs']:,} open), "
        f"{counts['items']:,} results, {counts['objects']:,} objects "
        f"({bytes_text(counts['object_bytes'])}), schema {manifest.schema}, "
        f"as of {manifest.created_at}"
    )


@contextmanager
def _stoppable() -> Iterator[None]:
    """End at SIGTERM and a closed terminal as at Ctrl-C: what was begun is removed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
