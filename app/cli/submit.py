"""``darkroom submit``: recognise images from here, from the object store or from a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import note, print_json, say
from app.cli.exits import EXIT_OF_STATE, Exit
from app.cli.follow import finish, follow
from app.cli.inputs import counted_images, read_pairs, send_file
from app.cli.limits import (
    DeadlineText,
    MaxFailedTexts,
    Priority,
    read_deadline,
    read_max_failed,
)

if TYPE_CHECKING:
    from app.client import Darkroom


def submit(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A zip, tar or tar.gz, a folder of images, or s3://bucket/prefix.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="NAME, NAME@ALIAS, NAME@NUMBER or mdv_…"),
    ] = ...,  # type: ignore[assignment]  # typer's mark of an option that must be given
    upload: Annotated[
        str | None, typer.Option(help="An earlier upload: upl_…", show_default=False)
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="s3://bucket/key of a JSONL or CSV that lists keys.", show_default=False),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(help="Bucket of a manifest's keys that name none.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset version: NAME@NUMBER.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test of it.", show_default=False)
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob of names to take; repeat for more.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of names to leave out; repeat for more.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Classes per image.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score that is kept.")
    ] = None,
    activation: Annotated[str | None, typer.Option(help="softmax or sigmoid.")] = None,
    priority: Priority = 0,
    deadline: DeadlineText = None,
    max_failed: MaxFailedTexts = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE kept with the job; repeat for more.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show progress until the job is over.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="The same without showing.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds to watch or wait at most.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Recognise a batch of images.

    The images are a local archive or folder (uploaded first), a prefix or manifest in the
    object store, an earlier upload, or a dataset version.
    """
    pairs = read_pairs(metadata or ())
    until, budget = read_deadline(deadline), read_max_failed(max_failed)
    _require_one(source, upload, manifest, dataset)
    quiet = as_json or (wait and not watch)
    with connect(context) as darkroom:
        images = _images(
            darkroom, source, upload, manifest, dataset, bucket, split, include, exclude, quiet
        )
        job = darkroom.jobs.submit_predict(
            images,
            model,
            top_k=top_k,
            threshold=threshold,
            activation=activation,
            priority=priority,
            deadline=until,
            max_failed=budget,
            metadata=pairs,
        )
        if watch or wait:
            if not as_json:
                note(f"job {job.id}")
            job = follow(darkroom, job.id, quiet=quiet, timeout=timeout)
            raise typer.Exit(finish(darkroom, job, as_json=as_json))
        if as_json:
            print_json(job.raw)
            return
        say(job.id)
        note(f"submitted; follow it with: darkroom watch {job.id}")


def _require_one(*sources: str | None) -> None:
    if sum(source is not None for source in sources) != 1:
        raise typer.BadParameter(
            "give exactly one of SOURCE, --upload, --manifest and --dataset", param_hint="SOURCE"
        )


def _images(
    darkroom: Darkroom,
    source: str | None,
    upload: str | None,
    manifest: str | None,
    dataset: str | None,
    bucket: str | None,
    split: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    quiet: bool,
) -> dict[str, Any]:
    """The job's ``input``; a local archive or folder is uploaded and unpacked first."""
    if split is not None and dataset is None:
        raise typer.BadParameter("only a dataset has splits", param_hint="--split")
    if bucket is not None and manifest is None:
        raise typer.BadParameter("only a manifest needs a bucket", param_hint="--bucket")
    globs = {"include": include, "exclude": exclude}
    if any(globs.values()) and source is None:
        raise typer.BadParameter(
            "globs choose files of a folder or objects of a prefix", param_hint="--include"
        )
    if upload is not None:
        return {"upload": upload}
    if manifest is not None:
        return {"manifest": manifest, **({"bucket": bucket} if bucket else {})}
    if dataset is not None:
        return {"dataset": dataset, **({"split": split} if split else {})}
    assert source is not None
    if source.startswith("s3://"):
        return {"prefix": source, **{name: glob for name, glob in globs.items() if glob}}
    path = Path(source)
    added = send_file(darkroom, path, include=include or (), exclude=exclude or (), quiet=quiet)
    if added.job is None:
        raise typer.BadParameter(f"{path} is a weights file; images come in archives")
    ingest = follow(darkroom, added.job.id, quiet=quiet)
    if ingest.state not in ("succeeded", "partially_succeeded"):
        finish(darkroom, ingest)
        raise typer.Exit(EXIT_OF_STATE.get(ingest.state, Exit.FAILED))
    if not quiet:
        note(f"upload {added.upload.id}: {counted_images(ingest.counts)}")
    return {"upload": added.upload.id}
