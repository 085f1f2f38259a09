"""``darkroom uploads add | list | show``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import note, print_fields, print_json, print_table, say, state_text
from app.cli.exits import EXIT_OF_STATE, Exit
from app.cli.follow import finish, follow
from app.cli.inputs import send_file
from app.cli.options import Timeout, Wait
from app.cli.words import ago_text, bytes_text

if TYPE_CHECKING:
    from app.client.values import Job

app = typer.Typer(
    cls=GuardedGroup, help="Send archives, folders and weights.", no_args_is_help=True
)


@app.command()
def add(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A zip, tar, tar.gz, folder or .safetensors.", show_default=False
        ),
    ],
    include: Annotated[
        list[str] | None, typer.Option(help="Glob of a folder's files to take.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of a folder's files to leave out.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show progress until it is unpacked.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Send a file or folder; an archive's images are then unpacked and judged.

    Labels come from folder names or a labels.csv in the archive.
    """
    quiet = as_json or (wait and not watch)
    with connect(context) as darkroom:
        added = send_file(darkroom, path, include=include or (), exclude=exclude or (), quiet=quiet)
        job, code = added.job, Exit.DONE
        if job is not None and (watch or wait):
            if not as_json:
                note(f"upload {added.upload.id}, job {job.id}")
            job = follow(darkroom, job.id, quiet=quiet, timeout=timeout)
            code = EXIT_OF_STATE.get(job.state, Exit.FAILED)
        if as_json:
            upload = darkroom.uploads.get(added.upload.id) if job else added.upload
            print_json({"upload": upload.raw, "job": job.raw if job else None})
            raise typer.Exit(code)
        if job is not None and job.is_over:
            finish(darkroom, job)
            say(_measured(added.upload.id, job, darkroom.counters()))
            raise typer.Exit(code)
        say(added.upload.id)
        if job is not None and not job.is_over:
            note(f"unpacking; follow it with: darkroom watch {job.id}")
        raise typer.Exit(code)


def _measured(upload_id: str, job: Job, counters: dict[str, float]) -> str:
    """One plain line for scripts: what was unpacked, how fast, and the API's peak of memory."""
    counts, rate = job.counts, job.images_per_second or 0.0
    api_mb = counters.get("process_peak_resident_memory_bytes", 0.0) / 1e6
    return (
        f"upload id={upload_id} images={counts.succeeded} failed={counts.failed} "
        f"seconds={job.seconds or 0.0:.2f} images_per_s={rate:.0f} "
        f"api_peak_mb={api_mb:.0f}"
    )


@app.command("list")
def list_uploads(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Uploads to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List uploads, newest first."""
    with connect(context) as darkroom:
        uploads = list(islice(darkroom.uploads.list(), limit))
    if as_json:
        print_json([upload.raw for upload in uploads])
        return
    print_table(
        ("upload", "file", "kind", "state", "size", "images", "failed", "sent"),
        [
            (
                upload.id,
                upload.filename,
                upload.kind,
                state_text(upload.state),
                bytes_text(upload.size_bytes),
                f"{upload.image_count:,}" if upload.kind == "archive" else "",
                f"{upload.failed_count:,}" if upload.failed_count else "",
                ago_text(upload.created_at),
            )
            for upload in uploads
        ],
        right=("size", "images", "failed"),
        wrap=("file",),
        spare=("kind", "failed", "sent"),
        empty="no uploads",
    )


@app.command()
def show(
    context: typer.Context,
    upload_id: Annotated[str, typer.Argument(metavar="UPLOAD", help="upl_…", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Show one upload."""
    with connect(context) as darkroom:
        upload = darkroom.uploads.get(upload_id)
    if as_json:
        print_json(upload.raw)
        return
    print_fields(
        (
            ("upload", upload.id),
            ("file", upload.filename),
            ("kind", upload.kind),
            ("state", state_text(upload.state)),
            ("size", bytes_text(upload.size_bytes) if upload.size_bytes is not None else None),
            ("sha256", upload.sha256),
            ("images", f"{upload.image_count:,}" if upload.kind == "archive" else None),
            ("failed", f"{upload.failed_count:,}" if upload.failed_count else None),
            ("job", upload.job_id),
            ("sent", ago_text(upload.created_at)),
        )
    )
