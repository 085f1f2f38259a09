"""Weights that nobody needs any more: uploads in clear, and versions that were given up.

Their rows move on first, their objects go next.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.db.hold import deletions_held
from app.db.session import Database
from app.db.transition import transition
from app.jobs.states import JobKind
from app.jobs.tables import OPEN_JOBS, Job
from app.log import get_logger
from app.models.states import VERSION_SOURCES, VersionState
from app.models.tables import GIVEN_UP, ModelVersion
from app.storage.s3 import ObjectStore
from app.uploads.settle import WEIGHTS_SOURCES
from app.uploads.tables import WAITING_WEIGHTS, Upload, UploadState

log = get_logger(__name__)

BATCH = 20
#: How long a version that was given up keeps its weights at least.
GRACE = timedelta(minutes=5)


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


def delete_given_up(db: Database, store: ObjectStore, bucket: str) -> int:
    """Delete the weights of versions that were given up and that no open job uses; how many.

    A submission that read the version just before it was archived has long committed, or ended,
    by the time that is waited for.

    Raises:
        UnavailableError: a part does not answer.
    """
    unused = (
        select(ModelVersion.id)
        .where(
            text(GIVEN_UP),
            ModelVersion.delete_asked_at < func.now() - GRACE,
            ~exists().where(
                text(OPEN_JOBS),
                or_(
                    Job.model_version_id == ModelVersion.id,
                    Job.shared_version_id == ModelVersion.id,
                ),
            ),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    with db.system() as session:
        transition(
            session,
            ModelVersion,
            VersionState.DELETED,
            sources=VERSION_SOURCES[VersionState.DELETED],
            where=[ModelVersion.id.in_(unused)],
        )
        gone = session.execute(
            select(ModelVersion.id, ModelVersion.weights_key)
            .where(text(GIVEN_UP), ModelVersion.state == VersionState.DELETED)
            .limit(BATCH)
        ).all()
    if not gone or deletions_held(db):
        return 0
    store.delete(bucket, [version.weights_key for version in gone])
    with db.system() as session:
        session.execute(
            update(ModelVersion)
            .where(ModelVersion.id.in_([version.id for version in gone]))
            .values(weights_key=None, sealed_key=None, sealed_sha256=None)
            .execution_options(synchronize_session=False)
        )
    for version in gone:
        log.info("version_deleted", version=version.id)
    return len(gone)


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
