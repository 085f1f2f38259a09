"""Uploads as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.api.schemas.base import Answer, PageAnswer, Parameters, Request, UploadId
from app.api.schemas.job_answers import JobAnswer

UploadKindWord = Literal["archive", "weights"]
Filename = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f/\\]+$", min_length=1, max_length=255),
]


class UploadQuery(Parameters):
    """What the body is."""

    kind: UploadKindWord = Field(
        "archive", description="`archive`: zip, tar or tar.gz of images. `weights`: safetensors."
    )
    filename: Filename = Field("upload", description="The name it is shown under.")


class UploadPath(Parameters):
    """Which upload."""

    upload_id: UploadId = Field(description="An upload's id.")


class BeginMultipart(Request):
    """A large file that will be sent in parts, straight to the object store."""

    kind: UploadKindWord = "archive"
    filename: Filename = "upload"
    size_bytes: int = Field(ge=1, le=2**62)


class SentPart(Request):
    """One part, as the object store acknowledged it."""

    number: int = Field(ge=1, le=10_000)
    etag: Annotated[str, StringConstraints(pattern=r'^"?[\x21\x23-\x7e]{1,200}"?$')] = Field(
        description="The ETag header of the PUT's answer."
    )


class CompleteMultipart(Request):
    """Every part, in order."""

    parts: list[SentPart] = Field(min_length=1, max_length=10_000)


class UploadLinks(Answer):
    """Where more is to be read."""

    self: str
    job: str | None


class UploadAnswer(Answer):
    """A client's archive or weights file."""

    id: str
    kind: UploadKindWord
    state: Literal["receiving", "stored", "ready", "failed"]
    filename: str
    size_bytes: int | None
    sha256: str | None = Field(description="Null where the parts went past the service.")
    job_id: str | None = Field(description="The ingest job of an archive.")
    image_count: int = Field(description="Images packed so far.")
    failed_count: int = Field(description="Members that are no usable image.")
    created_at: datetime
    stored_at: datetime | None
    ready_at: datetime | None
    links: UploadLinks


class UploadPage(PageAnswer):
    """A page of uploads, newest first."""

    data: list[UploadAnswer]


class StoredUpload(Answer):
    """An upload whose bytes are all there; an archive's ingest job unpacks it."""

    upload: UploadAnswer
    job: JobAnswer | None


class PartLink(Answer):
    """Where to PUT one part."""

    number: int
    url: str


class BegunMultipart(Answer):
    """Where to send which bytes: part n begins at byte (n - 1) · `part_bytes`."""

    upload: UploadAnswer
    part_bytes: int
    parts: list[PartLink]
    expires_at: datetime = Field(description="When the links end.")
