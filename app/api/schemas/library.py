"""Datasets and models as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from app.api.schemas.base import Answer, Metadata, Name, Number, PageAnswer, Parameters, Request
from app.api.schemas.jobs import ImportOptions, UploadInput


class Fractions(Request):
    """Shares of the samples whose split did not come with them; they sum to 1."""

    train: float = Field(0.8, ge=0, le=1)
    validation: float = Field(0.0, ge=0, le=1)
    test: float = Field(0.2, ge=0, le=1)


class FreezeDataset(Request):
    """The labelled images of an upload, to be frozen as a version of a dataset."""

    name: Name
    input: UploadInput
    fractions: Fractions = Fractions()
    seed: int = Field(0, ge=0, le=2**63 - 1)
    skip_unlabelled: bool = Field(False, description="Leave images without a label out.")
    labels: dict[str, str] = Field(
        {},
        max_length=10_000,
        description="Label of the upload → its name in this version; equal names become one class.",
    )


class NamePath(Parameters):
    """Which dataset or model."""

    name: Name = Field(description="Its name.")


class VersionPath(Parameters):
    """Which version of which dataset or model."""

    name: Name = Field(description="Its name.")
    number: Number = Field(description="The version's number, from 1.")


class AliasPath(Parameters):
    """Which alias of which model."""

    name: Name = Field(description="The model's name.")
    alias: Name = Field(description="The alias, such as `production`.")


class MoveAlias(Request):
    """Where an alias shall point."""

    version: Number


class ImportVersion(ImportOptions):
    """Weights to be checked and registered as the model's next version."""

    metadata: Metadata = Field({})


class DatasetAnswer(Answer):
    """A dataset."""

    id: str
    name: str
    version_count: int
    latest_number: int = Field(description="0 where there is no version yet.")
    created_at: datetime


class DatasetPage(PageAnswer):
    """A page of datasets, newest first."""

    data: list[DatasetAnswer]


class Sides(Answer):
    """Widths or heights of images in pixels, before EXIF turns any."""

    min: int
    median: int = Field(description="Of an even number, the lower of the two in the middle.")
    mean: float
    max: int


class Aspects(Answer):
    """How many images are wider than high, as wide as high, higher than wide."""

    landscape: int
    square: int
    portrait: int


class ImageBytes(Answer):
    """Bytes of the images as they were sent."""

    min: int
    mean: float
    max: int
    total: int


class CopyAnswer(Answer):
    """One of several images with the same bytes."""

    name: str
    split: str
    label: str


class CopiesAnswer(Answer):
    """Images with the same bytes."""

    sha256: str
    count: int
    images: list[CopyAnswer] = Field(description="At most 4 of them, of each split and label one.")


class Duplicates(Answer):
    """Images of a dataset version with the same bytes, told apart by their SHA-256."""

    groups: int = Field(description="Contents that more than one image has.")
    images: int = Field(description="Images in those groups.")
    across_splits: int = Field(
        description="Groups that stand in several splits: what is tested was learnt."
    )
    contradicting: int = Field(description="Groups whose images have different labels.")
    examples: list[CopiesAnswer] = Field(
        description="At most 5 groups: contradicting ones first, then those across splits."
    )


class DatasetFacts(Answer):
    """What the images of a dataset version are like."""

    width: Sides
    height: Sides
    aspect: Aspects
    bytes: ImageBytes
    duplicates: Duplicates


class DatasetVersionAnswer(Answer):
    """Frozen labelled images."""

    id: str
    name: str
    number: int
    content_sha256: str
    classes: list[str]
    sample_count: int
    counts: dict[str, dict[str, int]] = Field(description="Split → class → samples.")
    source: dict[str, Any] = Field(description="What it was frozen from.")
    facts: DatasetFacts | None = Field(
        description="Sizes and duplicates; null where an earlier release froze it."
    )
    created_at: datetime


class DatasetVersionPage(PageAnswer):
    """A page of a dataset's versions, highest number first."""

    data: list[DatasetVersionAnswer]


class ModelAnswer(Answer):
    """A model."""

    id: str
    name: str
    aliases: dict[str, int] = Field(description="Alias → version number.")
    version_count: int
    latest_number: int
    created_at: datetime


class ModelPage(PageAnswer):
    """A page of models, newest first."""

    data: list[ModelAnswer]


class SpeedAnswer(Answer):
    """How fast a version was on one kind of device, in the `predict` and `evaluate` jobs it ran."""

    device: str = Field(description="Its name, threads and precision.")
    images_per_second: float | None = Field(
        description="Of one worker while it was busy: reading, decoding and the network together."
    )
    forward_images_per_second: float | None = Field(description="Of the network alone.")
    images: int = Field(description="How many images these are measured on.")


class ModelVersionAnswer(Answer):
    """Immutable weights with their preprocessing, classes and lineage."""

    id: str
    model: str
    number: int
    state: Literal["pending", "ready", "archived", "failed", "deleted"]
    aliases: list[str]
    arch: str
    arch_options: dict[str, Any]
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    preprocess_sha256: str | None
    weights_sha256: str | None
    weights_bytes: int | None
    parameter_count: int | None
    macs: int | None = Field(description="Multiply-accumulate operations for one image.")
    scores: dict[str, Any] | None
    speeds: list[SpeedAnswer] = Field(
        description="The device with most images first; empty where it answered none yet."
    )
    #: The temperature that the last evaluation fitted, and on what.
    calibration: dict[str, Any] | None
    lineage: dict[str, Any]
    job_id: str | None
    created_at: datetime
    ready_at: datetime | None
    delete_asked_at: datetime | None = Field(
        description="Since when its weights go as soon as no open job uses them."
    )
    deleted_at: datetime | None


class ModelVersionPage(PageAnswer):
    """A page of a model's versions, highest number first."""

    data: list[ModelVersionAnswer]
