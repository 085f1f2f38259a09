"""What becomes of an upload when its ingest job ends."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.transition import transition
from app.uploads.tables import Upload, UploadState

#: Allowed moves: target → the states it may be reached from.
UPLOAD_SOURCES = {
    UploadState.STORED: frozenset({UploadState.RECEIVING}),
    UploadState.READY: frozenset({UploadState.STORED, UploadState.RECEIVING}),
    UploadState.FAILED: frozenset({UploadState.RECEIVING, UploadState.STORED}),
}
#: The same for weights that lie ready: imported, or wanted by nobody for long.
WEIGHTS_SOURCES = {
    UploadState.IMPORTED: frozenset({UploadState.READY}),
    UploadState.FAILED: frozenset({UploadState.READY}),
}


def settle_upload(session: Session, tenant_id: str, job_id: str, *, usable: bool) -> None:
    """Move the upload of an ingest job to ready, or to failed where nothing can be used."""
    to = UploadState.READY if usable else UploadState.FAILED
    transition(
        session,
        Upload,
        to,
        sources=UPLOAD_SOURCES[to],
        where=[Upload.tenant_id == tenant_id, Upload.job_id == job_id],
    )
