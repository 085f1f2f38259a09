"""Weights files in clear that nobody needs any more: their rows move on, their objects go next."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, exists, func, select, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.jobs.states import JobKind
from app.jobs.tables import OPEN_JOBS, Job
from app.log import get_logger
from app.models.states import VersionState
from app.models.tables import ModelVersion
from app.uploads.settle import WEIGHTS_SOURCES
from app.uploads.tables import WAITING_WEIGHTS, Upload, UploadState

log = get_logger(__name__)

BATCH = 20


def give_up_weights(db: Database, *, upload_days: float) -> int:
    """Let go of weights files that became a version, or that no import took; how many.

    An import moves its file itself. Left over are those of earlier releases, and those that
    no import succeeded with for ``upload_days``. None goes that an open import job reads.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        imported = _move(session, UploadState.IMPORTED, _became_a_version())
        lapsed = _move(
            session,
            UploadState.FAILED,
            func.now() - Upload.created_at > timedelta(days=upload_days),
        )
    for upload_id in lapsed:
        log.warning("weights_given_up", upload=upload_id)
    return max(len(imported), len(lapsed))


def _move(session: Session, to: UploadState, where: ColumnElement[bool]) -> list[str]:
    unneeded = (
        select(Upload.id)
        .where(
            text(WAITING_WEIGHTS),
            where,
            ~exists().where(
                text(OPEN_JOBS),
                Job.tenant_id == Upload.tenant_id,
                Job.kind == JobKind.IMPORT,
                Job.input["weights"].astext == Upload.id,
            ),
        )
        .order_by(Upload.created_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    moved = transition(
        session, Upload, to, sources=WEIGHTS_SOURCES[to], where=[Upload.id.in_(unneeded)]
    )
    return [row.id for row in moved]


def _became_a_version() -> ColumnElement[bool]:
    return exists().where(
        ModelVersion.tenant_id == Upload.tenant_id,
        ModelVersion.state.in_([VersionState.READY, VersionState.ARCHIVED]),
        ModelVersion.lineage["weights"].astext == Upload.id,
    )
