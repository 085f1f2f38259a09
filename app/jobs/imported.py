"""What becomes of a weights file once it is a model version: the file in clear goes."""

from __future__ import annotations

from sqlalchemy import exists, select, text
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.jobs.states import JobKind
from app.jobs.tables import OPEN_JOBS, Job
from app.uploads.settle import WEIGHTS_SOURCES
from app.uploads.tables import Upload, UploadKind, UploadState


def settle_weights(session: Session, tenant_id: str, upload_id: str, job_id: str) -> str | None:
    """Move an upload to imported, in the transaction that ends the import job ``job_id``.

    The key of its object, which may be deleted after the commit; None where another import job
    still wants it, which then is the one to move it.
    """
    mine = (Upload.id == upload_id, Upload.tenant_id == tenant_id)
    # Of two imports that end at once the second one waits here, and sees that the first has ended.
    session.execute(select(Upload.id).where(*mine).with_for_update())
    wanted = session.scalar(
        select(
            exists().where(
                text(OPEN_JOBS),
                Job.tenant_id == tenant_id,
                Job.kind == JobKind.IMPORT,
                Job.input["weights"].astext == upload_id,
                Job.id != job_id,
            )
        )
    )
    if wanted:
        return None
    moved = transition(
        session,
        Upload,
        UploadState.IMPORTED,
        sources=WEIGHTS_SOURCES[UploadState.IMPORTED],
        where=[*mine, Upload.kind == UploadKind.WEIGHTS],
        returning=[Upload.object_key],
    )
    return moved[0].object_key if moved else None
