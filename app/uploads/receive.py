"""Receiving an upload: a row first, then the bytes, then the row says that they are there.

Bytes never meet a transaction: no connection is held while a client sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.page import fetch_page
from app.db.transition import transition
from app.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ObjectMissingError,
    TooLargeError,
    UnavailableError,
)
from app.ids import UPLOAD, new_id
from app.storage.keys import upload_archive
from app.storage.s3 import ObjectStore
from app.uploads.settle import UPLOAD_SOURCES
from app.uploads.tables import Upload, UploadKind, UploadState


@dataclass(frozen=True, slots=True)
class Received:
    """What arrived."""

    size_bytes: int
    sha256: str


def begin_upload(
    session: Session,
    tenant_id: str,
    *,
    kind: UploadKind,
    filename: str,
    upload_id: str | None = None,
    size_bytes: int | None = None,
    multipart_id: str | None = None,
) -> Upload:
    """The row of an upload whose bytes are to come; ``size_bytes`` as announced."""
    upload_id = upload_id or new_id(UPLOAD)
    upload = Upload(
        id=upload_id,
        tenant_id=tenant_id,
        kind=kind,
        state=UploadState.RECEIVING,
        filename=filename,
        object_key=upload_archive(tenant_id, upload_id),
        size_bytes=size_bytes,
        multipart_id=multipart_id,
        image_count=0,
        failed_count=0,
    )
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def receive_bytes(
    store: ObjectStore, bucket: str, key: str, pieces: Iterable[bytes], *, max_bytes: int
) -> Received:
    """Write what arrives to one object; nothing is stored where ``pieces`` raises.

    Memory: a piece and a part of the object store.

    Raises:
        TooLargeError: more than ``max_bytes`` arrived, whatever was announced.
        InvalidInputError: ``upload_empty``.
        UnavailableError: the object store does not take it.
    """
    try:
        with store.writer(bucket, key) as out:
            for piece in pieces:
                if out.size + len(piece) > max_bytes:
                    raise TooLargeError(f"the upload is larger than {max_bytes} bytes")
                out.write(piece)
            if out.size == 0:
                raise InvalidInputError("the upload is empty", code="upload_empty")
            received = Received(out.size, out.sha256)
    except ObjectMissingError as error:
        # Only the bucket can be missing when one writes, and that is not the client's fault.
        raise UnavailableError(
            "the object store is not ready; try again", code="storage_unavailable"
        ) from error
    return received


def finish_upload(
    session: Session,
    tenant_id: str,
    upload_id: str,
    *,
    size_bytes: int,
    sha256: str | None,
) -> Upload:
    """Say that all bytes lie in the object store.

    An archive is ``stored`` until its ingest job has unpacked it; weights are ``ready``.

    Raises:
        NotFoundError: ``upload_not_found``.
        ConflictError: ``upload_not_receiving``: it was aborted, or finished already.
    """
    upload = get_upload(session, tenant_id, upload_id)
    to = UploadState.STORED if upload.kind == UploadKind.ARCHIVE else UploadState.READY
    values: dict[str, object] = {
        "size_bytes": size_bytes,
        "sha256": sha256,
        "multipart_id": None,
    }
    _move(session, upload, to, values)
    return upload


def fail_upload(session: Session, tenant_id: str, upload_id: str) -> Upload:
    """Give up an upload whose bytes have not all arrived; its object is the caller's to drop.

    Raises:
        NotFoundError: ``upload_not_found``.
        ConflictError: ``upload_not_receiving``: all its bytes are there.
    """
    upload = get_upload(session, tenant_id, upload_id)
    _move(session, upload, UploadState.FAILED, {})
    return upload


def get_upload(session: Session, tenant_id: str, upload_id: str) -> Upload:
    """The upload's row.

    Raises:
        NotFoundError: ``upload_not_found``.
    """
    upload = session.scalar(
        select(Upload).where(Upload.id == upload_id, Upload.tenant_id == tenant_id)
    )
    if upload is None:
        raise NotFoundError(f"no upload {upload_id}", code="upload_not_found")
    return upload


def list_uploads(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 50
) -> tuple[list[Upload], bool]:
    """A page of the tenant's uploads, newest first, and whether more follow."""
    return fetch_page(
        session,
        select(Upload).where(Upload.tenant_id == tenant_id),
        Upload.id,
        after=after,
        limit=limit,
    )


def _move(session: Session, upload: Upload, to: UploadState, values: dict[str, object]) -> None:
    moved = transition(
        session,
        Upload,
        to,
        # Here only what is still arriving moves: what was stored belongs to the ingest job.
        sources=UPLOAD_SOURCES[to] & {UploadState.RECEIVING},
        where=[Upload.id == upload.id, Upload.tenant_id == upload.tenant_id],
        values=values,
    )
    session.refresh(upload)
    if not moved:
        raise ConflictError(
            f"upload {upload.id} is {upload.state}: it takes no more bytes",
            code="upload_not_receiving",
        )
