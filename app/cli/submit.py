"""``darkroom submit``: recognise images from here, from the object store or from a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.connect import JsonFlag, connect
from app.cli.console import note
from app.cli.exits import EXIT_OF_STATE, Exit
from app.cli.follow import finish, finish_submit, follow
from app.cli.inputs import check_path, counted_images, read_pairs, send_file
from app.cli.limits import (
    DeadlineText,
    MaxFailedTexts,
    read_deadline,
    read_max_failed,
)
from app.cli.options import (
    Activation,
    DatasetOfJob,
    MetadataTexts,
    ModelOfJob,
    Priority,
    SplitOfJob,
    Threshold,
    Timeout,
    TopK,
    Wait,
    Watch,
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
    model: ModelOfJob = ...,  # type: ignore[assignment]  # typer's mark of an option that must be given
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
    dataset: DatasetOfJob = None,
    split: SplitOfJob = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob of names to take; repeat for more.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of names to leave out; repeat for more.")
    ] = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    activation: Activation = None,
    priority: Priority = 0,
    deadline: DeadlineText = None,
    max_failed: MaxFailedTexts = None,
    metadata: MetadataTexts = None,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: JsonFlag = False,
) -> None:
    """Recognise a batch of images.

    The images are a local archive or folder (uploaded first), a prefix or manifest in the
    object store, an earlier upload, or a dataset version.
    """
    pairs = read_pairs(metadata or ())
    until, budget = read_deadline(deadline), read_max_failed(max_failed)
    _require_one(source, upload, manifest, dataset)
    named = _named_images(source, upload, manifest, dataset, bucket, split, include, exclude)
    quiet = as_json or (wait and not watch)
    with connect(context) as darkroom:
        images = named or _send_images(
            darkroom, Path(source or ""), model, until, include or (), exclude or (), quiet=quiet
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
        finish_submit(darkroom, job, watch=watch, wait=wait, timeout=timeout, as_json=as_json)


def _require_one(*sources: str | None) -> None:
    if sum(source is not None for source in sources) != 1:
        raise typer.BadParameter(
            "give exactly one of SOURCE, --upload, --manifest and --dataset", param_hint="SOURCE"
        )


def _named_images(
    source: str | None,
    upload: str | None,
    manifest: str | None,
    dataset: str | None,
    bucket: str | None,
    split: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
) -> dict[str, Any] | None:
    """The job's ``input``; None where it is a file or folder here, which has to be sent first."""
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
    if source is not None and source.startswith("s3://"):
        return {"prefix": source, **{name: glob for name, glob in globs.items() if glob}}
    return None


def _send_images(
    darkroom: Darkroom,
    path: Path,
    model: str,
    deadline: datetime | None,
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Upload and unpack an archive or folder, unless its job would be refused; the ``input``."""
    check_path(path)
    if path.is_file() and path.suffix == ".safetensors":
        raise typer.BadParameter(f"{path} is a weights file; images come in archives")
    if deadline is not None and deadline <= datetime.now(UTC):
        raise typer.BadParameter(
            f"{deadline.isoformat()} has passed by the clock of this machine",
            param_hint="--deadline",
        )
    _require_model(darkroom, model)
    added = send_file(darkroom, path, include=include, exclude=exclude, quiet=quiet)
    assert added.job is not None
    ingest = follow(darkroom, added.job.id, quiet=quiet)
    if ingest.state not in ("succeeded", "partially_succeeded"):
        finish(darkroom, ingest)
        raise typer.Exit(EXIT_OF_STATE.get(ingest.state, Exit.FAILED))
    if not quiet:
        note(f"upload {added.upload.id}: {counted_images(ingest.counts)}")
    return {"upload": added.upload.id}


def _require_model(darkroom: Darkroom, reference: str) -> None:
    """Raise what the service would answer to a job of this model, as far as can be asked."""
    from app.client import ApiError

    # An id is copied, not typed, and no address of the service reads a version by it.
    if reference.startswith("mdv_"):
        return
    try:
        if "/" in reference:
            _require_shared(darkroom, reference)
            return
        version = darkroom.models.find(reference)
    except ApiError as error:
        # A key may submit jobs and yet not read models.
        if error.code == "scope_missing":
            return
        raise
    if version.state != "ready":
        raise ApiError(
            f"model version {reference!r} is {version.state}", code="model_not_ready", status=409
        )


def _require_shared(darkroom: Darkroom, reference: str) -> None:
    from app.client import ApiError

    name, _, selector = reference.partition("@")
    found = next((each for each in darkroom.models.shared() if each.model == name), None)
    if found is None:
        raise ApiError(
            f"no model {reference!r} is shared with this tenant; see darkroom models shared",
            code="model_not_found",
            status=404,
        )
    number = selector.isascii() and selector.isdigit()
    if not number and (selector or "production") not in found.aliases:
        known = ", ".join(f"@{alias}" for alias in found.aliases)
        raise ApiError(
            f"no model {reference!r} is shared with this tenant; aliases of {name!r} are "
            f"{known or 'none'}",
            code="model_not_found",
            status=404,
        )
    if "run" not in found.rights:
        raise ApiError(
            f"{name!r} is shared with this tenant for {' and '.join(found.rights)}, not to run it",
            code="run_not_granted",
            status=403,
        )
