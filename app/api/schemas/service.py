"""Artifacts, keys, workers and health as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from app.api.schemas.base import (
    Answer,
    ArtifactId,
    KeyId,
    Name,
    PageAnswer,
    Parameters,
    Request,
)
from app.tenants.rotate import DEFAULT_OVERLAP_SECONDS, MAX_OVERLAP_SECONDS

ScopeWord = Literal[
    "jobs:read",
    "jobs:write",
    "models:read",
    "models:write",
    "labels:write",
    "exports",
    "admin",
]


class ArtifactPath(Parameters):
    """Which artifact."""

    artifact_id: ArtifactId = Field(description="An artifact's id.")


class ArtifactAnswer(Answer):
    """A file that a job made."""

    id: str
    job_id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    content: str = Field(description="Where its bytes are.")


class ArtifactPage(PageAnswer):
    """A page of a job's files, oldest first."""

    data: list[ArtifactAnswer]


class LinkQuery(Parameters):
    """What stands in a link instead of a key."""

    token: str = Field("", max_length=400, description="As it stands in the link.")


class MakeLink(Request):
    """What the link shall lead to."""

    direct: bool = Field(
        False,
        description="Straight to the object store (a presigned link) instead of through the "
        "service; only where the store's address is one that the reader can reach.",
    )


class LinkAnswer(Answer):
    """A link that needs no key."""

    url: str
    expires_at: datetime


class KeyPath(Parameters):
    """Which key."""

    key_id: KeyId = Field(description="A key's id.")


class CreateKey(Request):
    """A key to be made."""

    name: Name
    scopes: Annotated[list[ScopeWord], Field(min_length=1, max_length=20)] = Field(
        description="What it may do. `labels:write` is reserved: no address asks for it yet."
    )
    expires_at: AwareDatetime | None = Field(None, description="Never, where left out.")


class RotateKey(Request):
    """How a key is succeeded."""

    overlap_seconds: int = Field(
        DEFAULT_OVERLAP_SECONDS,
        ge=0,
        le=MAX_OVERLAP_SECONDS,
        description="The old key ends after so many seconds; 0 is at once.",
    )
    expires_at: AwareDatetime | None = Field(
        None,
        description="End of the new key; left out, it lives as long as the old one was made to.",
    )


class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    line_id: str | None = Field(
        description="The first key of its line, where it succeeds another one by rotation."
    )
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyAnswer(KeyAnswer):
    """A key just made."""

    text: str | None = Field(
        description="The key itself, in this answer and never again: null in a replay."
    )


class KeyPage(PageAnswer):
    """A page of keys, newest first."""

    data: list[KeyAnswer]


class QuotaAnswer(Answer):
    """One quota."""

    limit: int
    used: int


class QuotasAnswer(Answer):
    """Each quota of the tenant, how much of it is used, and from where its jobs may read."""

    max_open_jobs: QuotaAnswer = Field(description="Jobs that have not ended.")
    max_open_items: QuotaAnswer = Field(description="Items of them that have not ended.")
    max_stored_bytes: QuotaAnswer = Field(description="Bytes of uploads, weights and artifacts.")
    max_submissions_per_minute: QuotaAnswer = Field(description="Jobs submitted in 60 seconds.")
    max_training_minutes: QuotaAnswer = Field(
        description="Minutes of fine-tuning within 30 days, failed attempts included."
    )
    input_locations: list[str] = Field(
        description="From where jobs may read by prefix, manifest and items: below each of these "
        "`s3://bucket/prefix/`; `*` is anywhere, an empty list nowhere. Uploads always serve."
    )


class WorkerAnswer(Answer):
    """A worker process, which works for all tenants: nothing of its machine or of their models."""

    id: str
    queue: str
    slots: int = Field(description="Chunks that it works on at once.")
    state: Literal["alive", "gone"]
    started_at: datetime
    last_seen_at: datetime
    gone_at: datetime | None


class WorkerPage(PageAnswer):
    """A page of workers, newest first."""

    data: list[WorkerAnswer]


class RootAnswer(Answer):
    """What answers at this address, and the paths to go on to."""

    service: Literal["darkroom"]
    version: str
    documentation: str
    openapi: str
    health: str


class LiveAnswer(Answer):
    """The process answers."""

    status: Literal["live"]


PartWord = Literal["ok", "failing"]


class ReadyAnswer(Answer):
    """Whether every part that the service needs answers."""

    status: Literal["ready", "not_ready"]
    database: PartWord
    object_store: PartWord
