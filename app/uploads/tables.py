"""Uploads and the shards that their images are packed in."""

from __future__ import annotations

import enum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

import app.tenants.tables  # noqa: F401  (foreign keys point to it)
from app.db.base import Base, Id, JsonList, Moment, of_same_tenant, one_of


class UploadKind(enum.StrEnum):
    """What a client sends."""

    #: zip, tar or tar.gz of images; an ingest job unpacks it.
    ARCHIVE = "archive"
    #: A safetensors file; an import job checks it.
    WEIGHTS = "weights"


class UploadState(enum.StrEnum):
    """Where an upload stands."""

    #: Bytes are arriving, in one stream or in parts.
    RECEIVING = "receiving"
    #: All bytes are in the object store; an archive waits for its ingest job.
    STORED = "stored"
    #: Usable as input: an archive's images are packed, weights lie ready.
    READY = "ready"
    #: Weights that became a model version; the file as it was sent is deleted.
    IMPORTED = "imported"
    #: Broken or abandoned; the ingest job's error says why.
    FAILED = "failed"


#: Uploads with something to delete, now or later. As text, so that a query says it in the index's
#: own words.
UNTIDY_UPLOADS = (
    "uploads.tidied_at IS NULL AND (uploads.state IN ('receiving', 'failed', 'imported') "
    "OR uploads.state = 'ready' AND uploads.kind = 'archive')"
)


#: Weights files in clear that no import has taken yet.
WAITING_WEIGHTS = "uploads.state = 'ready' AND uploads.kind = 'weights'"


class Upload(Base):
    """A client's archive or weights file."""

    __tablename__ = "uploads"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    kind: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(Text)
    #: The object store's id of an open multipart upload.
    multipart_id: Mapped[str | None] = mapped_column(Text)
    #: The ingest job of an archive.
    job_id: Mapped[Id | None]
    #: Images packed so far, and members that failed.
    image_count: Mapped[int] = mapped_column(BigInteger, default=0)
    failed_count: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Bytes of its shards so far.
    packed_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    stored_at: Mapped[Moment | None]
    ready_at: Mapped[Moment | None]
    #: Its objects, but for the shards of a usable one, were deleted.
    tidied_at: Mapped[Moment | None]

    __table_args__ = (
        of_same_tenant("job_id", "jobs"),
        CheckConstraint(one_of("kind", UploadKind), name="kind"),
        CheckConstraint(one_of("state", UploadState), name="state"),
        Index("ix_uploads_tenant_id_id", "tenant_id", "id", unique=True),
        Index(
            "ix_uploads_untidied",
            "created_at",
            postgresql_where=text(UNTIDY_UPLOADS),
        ),
        Index("ix_uploads_weights", "created_at", postgresql_where=text(WAITING_WEIGHTS)),
    )


class Shard(Base):
    """A tar-like object that holds many images of one upload, with the index of its entries."""

    __tablename__ = "shards"

    upload_id: Mapped[Id] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    object_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    #: One row per image in the compact form of :class:`app.uploads.pack.ShardEntry`.
    entries: Mapped[JsonList]
    entry_count: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (of_same_tenant("upload_id", "uploads", ondelete="CASCADE"),)
