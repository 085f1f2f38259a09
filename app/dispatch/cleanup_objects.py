"""Deletes objects that no row needs: of failed uploads, fenced attempts and ended trainings.

Each step first commits that nothing needs the objects, then asks whether a backup holds deletions,
then deletes, and marks its row last. A step that dies between is taken up again; two at once
delete the same objects, which is harmless. No connection is held while the store is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, text, update

from app.clock import utc_now
from app.db.hold import deletions_held
from app.db.session import Database
from app.db.transition import transition
from app.jobs.states import ChunkTask, JobKind
from app.jobs.tables import UNTIDY, Artifact, Chunk, Job
from app.log import get_logger
from app.models.tables import ModelVersion
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.uploads.settle import UPLOAD_SOURCES
from app.uploads.tables import UNTIDY_UPLOADS, Shard, Upload, UploadState

log = get_logger(__name__)

#: A stream that began so long ago has lost its client.
STREAM_AGE = timedelta(hours=24)
#: Parts may be sent over days, with new links each time.
PARTS_AGE = timedelta(days=7)
#: A fenced attempt may still be writing for a while after its job has ended.
LEFTOVER_AGE = timedelta(hours=1)
#: Uploads or jobs in one step, and objects of each: the next step goes on.
BATCH = 20
_OBJECTS = 2000
_MULTIPARTS = 200
#: Kinds of jobs that store what a later attempt, or a better trial, makes useless.
_TIDIED_KINDS = [
    JobKind.EXPORT,
    JobKind.FINETUNE,
    JobKind.IMPORT,
    JobKind.EVALUATE,
    JobKind.SEARCH,
]


def give_up_uploads(db: Database) -> int:
    """Fail uploads whose bytes stopped coming long ago; how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    age = func.now() - Upload.created_at
    stuck = (
        select(Upload.id)
        .where(
            Upload.state == UploadState.RECEIVING,
            or_(
                and_(Upload.multipart_id.is_(None), age > STREAM_AGE),
                and_(Upload.multipart_id.is_not(None), age > PARTS_AGE),
            ),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    with db.system() as session:
        given_up = transition(
            session,
            Upload,
            UploadState.FAILED,
            sources=UPLOAD_SOURCES[UploadState.FAILED],
            where=[Upload.id.in_(stuck)],
        )
    for row in given_up:
        log.warning("upload_given_up", upload=row.id)
    return len(given_up)


def tidy_uploads(db: Database, store: ObjectStore, bucket: str) -> int:
    """Delete what uploads left behind that came to their end; how many uploads.

    Of a failed one archive, parts and shards. Of imported weights the file, and of an unpacked
    archive all but the recorded shards: its worker may have died before it deleted them, or a
    backup may have held deletions.

    Raises:
        UnavailableError: a part does not answer.
    """
    ended = (
        select(Upload.id, Upload.tenant_id, Upload.state, Upload.object_key, Upload.multipart_id)
        .outerjoin(Job, Job.id == Upload.job_id)
        .where(
            text(UNTIDY_UPLOADS),
            Upload.state != UploadState.RECEIVING,
            Upload.created_at < func.now() - LEFTOVER_AGE,
            or_(
                and_(Upload.state == UploadState.FAILED, Upload.job_id.is_(None)),
                Upload.state == UploadState.IMPORTED,
                Job.ended_at < func.now() - LEFTOVER_AGE,
            ),
        )
        .order_by(Upload.created_at)
        .limit(BATCH)
    )
    with db.system() as session:
        uploads = session.execute(ended).all()
        failed = [upload.id for upload in uploads if upload.state == UploadState.FAILED]
        session.execute(
            delete(Shard)
            .where(Shard.upload_id.in_(failed))
            .execution_options(synchronize_session=False)
        )
    if not uploads or deletions_held(db):
        return 0
    return sum(_tidy_upload(db, store, bucket, upload) for upload in uploads)


def _tidy_upload(db: Database, store: ObjectStore, bucket: str, upload: Any) -> int:
    if upload.state == UploadState.FAILED and upload.multipart_id is not None:
        store.abort_multipart(bucket, upload.object_key, upload.multipart_id)
    with db.system() as session:
        kept = set(session.scalars(select(Shard.object_key).where(Shard.upload_id == upload.id)))
    found = store.list(bucket, keys.upload_prefix(upload.tenant_id, upload.id))
    if not _delete_all(store, bucket, (one.key for one in found if one.key not in kept)):
        return 0
    return _mark_tidied(db, Upload, upload.id)


def tidy_checkpoints(db: Database, store: ObjectStore, bucket: str) -> int:
    """Delete all checkpoints of trainings that have ended, however they ended; how many.

    By prefix, because an attempt that died may have stored what no cursor ever named. The
    cursor is emptied last: a training whose checkpoints may still lie there is found again.

    Raises:
        UnavailableError: a part does not answer.
    """
    with db.system() as session:
        ended = session.execute(
            select(Chunk.id, Chunk.tenant_id, Chunk.job_id, Chunk.task, Chunk.lo)
            .where(text(UNTIDY))
            .limit(BATCH)
        ).all()
    if not ended or deletions_held(db):
        return 0
    for chunk in ended:
        trial = chunk.lo if chunk.task == ChunkTask.TRIAL else None
        prefix = keys.checkpoint_prefix(chunk.tenant_id, chunk.job_id, trial)
        store.delete(bucket, [found.key for found in store.list(bucket, prefix)])
        with db.system() as session:
            session.execute(
                update(Chunk)
                .where(Chunk.id == chunk.id)
                .values(cursor=None)
                .execution_options(synchronize_session=False)
            )
    return len(ended)


def tidy_jobs(db: Database, store: ObjectStore, bucket: str) -> int:
    """Delete what ended jobs had stored and no row names, such as of lost attempts; how many jobs.

    Raises:
        UnavailableError: a part does not answer.
    """
    attempts = (
        select(func.max(Chunk.attempt)).where(Chunk.job_id == Job.id).correlate(Job)
    ).scalar_subquery()
    ended = (
        select(
            Job.id,
            Job.tenant_id,
            Job.kind,
            Job.model_version_id,
            attempts.label("attempts"),
            ModelVersion.weights_key,
        )
        .outerjoin(ModelVersion, ModelVersion.id == Job.model_version_id)
        .where(
            Job.kind.in_(_TIDIED_KINDS),
            Job.tidied_at.is_(None),
            Job.ended_at < func.now() - LEFTOVER_AGE,
        )
        .order_by(Job.ended_at)
        .limit(BATCH)
    )
    with db.system() as session:
        jobs = session.execute(ended).all()
    if not jobs or deletions_held(db):
        return 0
    return sum(_tidy_job(db, store, bucket, job) for job in jobs)


def _tidy_job(db: Database, store: ObjectStore, bucket: str, job: Any) -> int:
    with db.system() as session:
        kept = set(session.scalars(select(Artifact.object_key).where(Artifact.job_id == job.id)))
    kept.add(job.weights_key)
    if not _delete_all(
        store, bucket, (key for key in _made_by(store, bucket, job) if key not in kept)
    ):
        return 0
    return _mark_tidied(db, Job, job.id)


def _made_by(store: ObjectStore, bucket: str, job: Any) -> Iterator[str]:
    """Every object that any attempt of the job may have stored."""
    for found in store.list(bucket, keys.job_prefix(job.tenant_id, job.id)):
        yield found.key
    if job.kind == JobKind.SEARCH:
        prefix = keys.weights_prefix(job.tenant_id, job.model_version_id)
        yield from (found.key for found in store.list(bucket, prefix))
    elif job.model_version_id is not None:
        for attempt in range(1, (job.attempts or 0) + 1):
            name = f"{job.model_version_id}.{attempt}"
            yield keys.weights(job.tenant_id, name)
            yield keys.plain_weights(job.tenant_id, name)


def tidy_multiparts(db: Database, store: ObjectStore, bucket: str) -> int:
    """Discard parts of objects that nobody completed, but for uploads still coming; how many.

    Raises:
        UnavailableError: a part does not answer.
    """
    old = [
        one
        for one in store.list_open_multiparts(bucket, "tenants/")
        if one.initiated_at < utc_now() - STREAM_AGE
    ][:_MULTIPARTS]
    if not old:
        return 0
    with db.system() as session:
        coming = set(
            session.scalars(
                select(Upload.multipart_id).where(
                    Upload.state == UploadState.RECEIVING,
                    Upload.multipart_id.in_([one.multipart_id for one in old]),
                )
            )
        )
    gone = [one for one in old if one.multipart_id not in coming]
    for one in gone:
        store.abort_multipart(bucket, one.key, one.multipart_id)
    return len(gone)


def _mark_tidied(db: Database, table: type[Job] | type[Upload], row_id: str) -> int:
    """Mark the row whose objects are deleted; 1, or 0 where another did it first."""
    with db.system() as session:
        marked = session.execute(
            update(table)
            .where(table.id == row_id, table.tidied_at.is_(None))
            .values(tidied_at=func.now())
            .returning(table.id)
            .execution_options(synchronize_session=False)
        ).first()
    return int(marked is not None)


def _delete_all(store: ObjectStore, bucket: str, names: Iterator[str]) -> bool:
    """Delete the objects, a bounded number of them; whether that were all."""
    now = list(islice(names, _OBJECTS + 1))
    if now:
        store.delete(bucket, now[:_OBJECTS])
    return len(now) <= _OBJECTS
