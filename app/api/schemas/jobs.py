"""Jobs as they are asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, RootModel, StringConstraints, Tag

from app.api.schemas.base import (
    S3_PATTERN,
    Arch,
    JobId,
    Metadata,
    Name,
    Parameters,
    Reference,
    Request,
    UploadId,
    free_text,
)
from app.api.schemas.finetune import FinetuneOptions
from app.api.schemas.limits import Deadline, MaxFailed
from app.api.schemas.search import SearchOptions

#: A reference to a model, or ``owner/name…`` of a model that another tenant shares.
ModelReference = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
        r"(@[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$",
        max_length=302,
    ),
]
ClassName = Annotated[str, free_text(200)]
Location = Annotated[str, StringConstraints(pattern=S3_PATTERN, max_length=1200)]
Bucket = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", max_length=63)
]
Glob = Annotated[str, free_text(500)]
Split = Literal["train", "validation", "test"]
Priority = Annotated[
    int, Field(ge=-100, le=100, description="Jobs of higher priority are served first.")
]


class UploadInput(Request):
    """Every image of an upload whose ingest job has ended."""

    upload: UploadId


class PrefixInput(Request):
    """Every object under a prefix that a glob includes and none excludes."""

    prefix: Location
    include: list[Glob] = Field([], max_length=100)
    exclude: list[Glob] = Field([], max_length=100)


class ManifestInput(Request):
    """An object of JSON lines or CSV that lists the images."""

    manifest: Location
    bucket: Bucket | None = Field(
        None, description="Bucket of keys that name none; the manifest's own where left out."
    )


class InlineItem(Request):
    """One image by its location."""

    key: Location
    custom_id: Annotated[str, free_text(500)] | None = None
    label: ClassName | None = None
    metadata: Metadata | None = None


class ItemsInput(Request):
    """Up to 1,000 images, named in the request."""

    items: list[InlineItem] = Field(min_length=1, max_length=1000)


class DatasetInput(Request):
    """The images of a dataset version, or of one split of it."""

    dataset: Reference
    split: Split | None = None


_INPUTS = ("upload", "prefix", "manifest", "items", "dataset")


def _input_kind(body: Any) -> str | None:
    if not isinstance(body, dict):
        return None
    # No name of a field: the tag stands in error locations, where it must not look like one.
    return next((f"{name.title()}Input" for name in _INPUTS if name in body), None)


PredictInput = Annotated[
    Annotated[UploadInput, Tag("UploadInput")]
    | Annotated[PrefixInput, Tag("PrefixInput")]
    | Annotated[ManifestInput, Tag("ManifestInput")]
    | Annotated[ItemsInput, Tag("ItemsInput")]
    | Annotated[DatasetInput, Tag("DatasetInput")],
    # By the name that is there, so that a fault is told once and not once for each kind.
    Discriminator(
        _input_kind,
        custom_error_type="input_ambiguous",
        custom_error_message=f"needs exactly one of {', '.join(_INPUTS)}",
    ),
]


class PredictOptions(Request):
    """How scores become a prediction."""

    top_k: int = Field(5, ge=1, le=1000, description="At most so many classes an image.")
    threshold: float = Field(0.0, ge=0, le=1, description="Lower scores are left out.")
    activation: Literal["softmax", "sigmoid"] = "softmax"


class PredictJob(Request):
    """Recognise every image of an input with one model version."""

    kind: Literal["predict"]
    input: PredictInput
    model: ModelReference = Field(
        description="`name`, `name@alias`, `name@3` or an id; `owner/name…` where it is shared."
    )
    options: PredictOptions = PredictOptions()
    priority: Priority = 0
    deadline: Deadline | None = None
    max_failed: MaxFailed | None = None
    metadata: Metadata = Field({})


class EvaluateOptions(Request):
    """What is measured beside the scores."""

    top_k: int = Field(
        5,
        ge=1,
        le=1000,
        description="Classes an image of the results, and the k of top-k accuracy.",
    )
    bootstrap_samples: int = Field(
        1000, ge=1, le=10_000, description="Resamples of the images that intervals are made of."
    )
    hardest: int = Field(
        20,
        ge=0,
        le=1000,
        description="Images named in the report as hardest, and as most confidently wrong.",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Same seed, same intervals.")
    keep_temperature: bool = Field(
        True, description="Keep the fitted temperature with the version; answers do not change."
    )


class EvaluateJob(Request):
    """Measure one model version on every labelled image of an input, and write a report."""

    kind: Literal["evaluate"]
    input: PredictInput
    model: ModelReference = Field(
        description="`name`, `name@alias`, `name@3` or an id; `owner/name…` where it is shared."
    )
    options: EvaluateOptions = EvaluateOptions()
    priority: Priority = 0
    deadline: Deadline | None = None
    max_failed: MaxFailed | None = None
    metadata: Metadata = Field({})


class FinetuneInput(Request):
    """What a recogniser learns from."""

    dataset: Reference


class FinetuneJob(Request):
    """Train a new version of a model on a dataset version."""

    kind: Literal["finetune"]
    input: FinetuneInput
    model: Name
    options: FinetuneOptions = FinetuneOptions()
    priority: Priority = 0
    deadline: Deadline | None = None
    metadata: Metadata = Field({})


class SearchJob(Request):
    """Train by recipes that differ, and register what the best of them brought."""

    kind: Literal["search"]
    input: FinetuneInput
    model: Name
    options: SearchOptions
    priority: Priority = 0
    deadline: Deadline | None = None
    metadata: Metadata = Field({})


class Preprocess(Request):
    """How an image file becomes the network's input; see the model version's own."""

    resize_px: int = Field(ge=1, le=4096)
    crop_px: int = Field(ge=1, le=2048)
    resize_mode: Literal["shorter_side", "stretch", "letterbox"] = "shorter_side"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: list[Annotated[float, Field(ge=-10, le=10)]] = Field(
        [0.485, 0.456, 0.406], min_length=3, max_length=3
    )
    std: list[Annotated[float, Field(gt=0, le=10)]] = Field(
        [0.229, 0.224, 0.225], min_length=3, max_length=3
    )
    antialias: bool = Field(
        True, description="False reads single pixels when shrinking, as old tensor code did."
    )
    colour: Literal["rgb", "grey"] = Field(
        "rgb", description="`grey` gives the network three equal channels."
    )


class ImportOptions(Request):
    """Which weights, and what their outputs mean."""

    arch: Arch
    weights: Annotated[
        str,
        StringConstraints(
            pattern=r"^(upl_[0-9a-hjkmnp-tv-z]{26}|torchvision:[A-Za-z0-9_.]{1,80})$",
            max_length=100,
        ),
    ] = Field(description="An upload of kind weights, or `torchvision:DEFAULT` and the like.")
    classes: (
        Annotated[list[ClassName], Field(min_length=1, max_length=100_000)] | Literal["imagenet"]
    ) = Field(description="Class names in the order of the outputs, or `imagenet`.")
    alias: Name | None = Field(
        "production", description="Points at the new version when it is ready; null moves none."
    )
    preprocess: Preprocess | None = Field(
        None, description="The architecture's own where left out."
    )


class ImportJob(Request):
    """Check weights and register them as a new version of a model."""

    kind: Literal["import"]
    model: Name
    options: ImportOptions
    priority: Priority = 0
    deadline: Deadline | None = None
    metadata: Metadata = Field({})


class ExportInput(Request):
    """Whose results are written."""

    job: JobId


class ExportOptions(Request):
    """How results are written, and which."""

    format: Literal["jsonl", "csv", "parquet"] = "jsonl"
    only: Literal["all", "succeeded", "failed"] = "all"
    include_retries: bool = Field(
        False,
        description="Images that failed or never ended are answered by the job's retries, in "
        "their old places: by the newest in which they succeeded, else by the newest.",
    )


class ExportJob(Request):
    """Write the results of a predict job to a file."""

    kind: Literal["export"]
    input: ExportInput
    options: ExportOptions = ExportOptions()
    priority: Priority = 0
    deadline: Deadline | None = None
    metadata: Metadata = Field({})


class SubmitJob(
    RootModel[
        Annotated[
            PredictJob | EvaluateJob | FinetuneJob | SearchJob | ImportJob | ExportJob,
            Field(discriminator="kind"),
        ]
    ]
):
    """A job of one of six kinds."""

    model_config = ConfigDict(hide_input_in_errors=True)


JobKindWord = Literal["predict", "evaluate", "finetune", "search", "export", "ingest", "import"]
JobStateWord = Literal[
    "validating",
    "queued",
    "running",
    "finalizing",
    "paused",
    "cancelling",
    "succeeded",
    "partially_succeeded",
    "failed",
    "expired",
    "cancelled",
]


class JobsQuery(Parameters):
    """Which jobs to list, newest first."""

    after: JobId | None = Field(None, description="The `last_id` of the page before.")
    limit: int = Field(50, ge=1, le=1000, description="At most so many entries.")
    kind: JobKindWord | None = Field(None, description="Only jobs of this kind.")
    state: JobStateWord | None = Field(None, description="Only jobs in this state.")


class WaitQuery(Parameters):
    """How long an answer may be held back."""

    wait: float = Field(
        0,
        ge=0,
        le=3600,
        description=(
            "Seconds to hold the answer: with `If-None-Match` until the job differs from that "
            "ETag, without it until the job has ended. The service holds it for at most 30 s "
            "(a setting); if too many wait already, it answers at once."
        ),
    )


#: Where a page of results ended: by ordinal, or by seq and ordinal.
Cursor = Annotated[
    str, StringConstraints(pattern=r"^(o\.[0-9]{1,18}|s\.[0-9]{1,18}\.[0-9]{1,18})$")
]


class ResultsQuery(Parameters):
    """A page of results."""

    after: Cursor | None = Field(None, description="The `next_cursor` of the page before.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many entries.")
    only: Literal["all", "succeeded", "failed"] = Field("all", description="Which items.")


class ErrorsQuery(Parameters):
    """A page of failed items."""

    after: Cursor | None = Field(None, description="The `next_cursor` of the page before.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many entries.")


class MetricsQuery(Parameters):
    """Which numbers of a job to read."""

    after: (
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}:[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$")]
        | None
    ) = Field(None, description="The `last_id` of the page before.")
    limit: int = Field(1000, ge=1, le=10_000, description="At most so many entries.")
    name: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$")] | None
    ) = Field(None, description="Only this metric.")


class JobPath(Parameters):
    """Which job."""

    job_id: JobId = Field(description="A job's id.")
