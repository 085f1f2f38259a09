"""Unpack an archive into shards, one recorded shard after the other."""

from __future__ import annotations

from sqlalchemy import select

from app.db.hold import deletions_held
from app.errors import InvalidInputError, NotFoundError, UnavailableError
from app.jobs.ingest import record_ingested, record_shard, record_survey
from app.jobs.record import record_failure
from app.jobs.stint import Stint
from app.log import get_logger
from app.storage import keys
from app.storage.ranged import open_ranged
from app.uploads.judge import ImageLimits
from app.uploads.members import ArchiveLimits
from app.uploads.pack import PackedShard, ShardWriter
from app.uploads.tables import Upload
from app.uploads.unpack import pack_member, survey_archive
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import let_go

log = get_logger(__name__)


def ingest_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Unpack the archive, then free its bytes: the images lie in shards now, or are not wanted.

    Goes on where a loss left off. Whoever lost the lease, or must stop before the end, frees
    nothing: another attempt reads on.
    """
    archive_key = _archive_key(process, held)
    try:
        if not _unpack(process, held, archive_key) and not held.cancelled.is_set():
            return
    except InvalidInputError as error:
        # Recorded here rather than by the door, so that the bytes go only after the job.
        with process.db.tenant(held.lease.tenant_id) as session:
            record_failure(session, held.lease, error.as_dict())
    try:
        if deletions_held(process.db):
            # A backup's snapshot may still see this job open, and its restore reads the archive.
            log.info("archive_left", key=archive_key)
            return
        process.store.delete(process.settings.bucket, [archive_key])
    except UnavailableError as error:
        # The job has ended well; bytes that nobody needs are no reason to say otherwise.
        log.warning("archive_not_deleted", key=archive_key, detail=error.detail)


def _unpack(process: WorkerProcess, held: HeldLease, archive_key: str) -> bool:
    """Judge every member by its content and pack the images.

    False where it was stopped, or where its stint is over.
    """
    lease, settings = held.lease, process.settings
    stint = Stint(process.db, lease, settings.io_turn_seconds)
    file = open_ranged(process.store, settings.bucket, archive_key, on_block=held.move)
    archive, labels, item_count = survey_archive(file, ArchiveLimits.from_settings(settings))
    cursor = lease.cursor
    if cursor is None:
        with process.db.tenant(lease.tenant_id) as session:
            record_survey(session, lease, item_count, lease_seconds=settings.lease_seconds)
        cursor = {"members": 0, "shards": 0}
    upload_id = lease.input["upload"]
    writer = ShardWriter(
        max_bytes=settings.shard_bytes,
        max_items=settings.shard_items,
        key_of=lambda number: keys.shard(lease.tenant_id, upload_id, number),
        first_number=cursor["shards"],
        first_ordinal=cursor["members"],
    )
    limits = ImageLimits.from_settings(settings)
    for member in archive.members(start=cursor["members"]):
        # The way to the first one is long where an earlier attempt came far.
        stint.begin_work()
        if held.should_stop():
            let_go(process, held)
            return False
        full = pack_member(writer, member, labels, limits)
        if full is not None:
            _keep(process, held, full)
            if stint.is_over():
                let_go(process, held)
                return False
    last = writer.finish()
    if last is not None:
        _keep(process, held, last)
    with process.db.tenant(lease.tenant_id) as session:
        record_ingested(
            session,
            lease,
            archive_format=archive.format,
            label_faults=labels.faults,
            label_fault_count=labels.fault_count,
        )
    return True


def _archive_key(process: WorkerProcess, held: HeldLease) -> str:
    lease = held.lease
    with process.db.tenant(lease.tenant_id) as session:
        key = session.scalar(
            select(Upload.object_key).where(
                Upload.id == lease.input["upload"], Upload.tenant_id == lease.tenant_id
            )
        )
    if key is None:
        raise NotFoundError(f"the upload {lease.input['upload']} is gone", code="upload_not_found")
    return key


def _keep(process: WorkerProcess, held: HeldLease, shard: PackedShard) -> None:
    """Store the shard, then record it: what is recorded always exists."""
    lease, settings = held.lease, process.settings
    if shard.entries:
        process.store.put(settings.bucket, shard.key, shard.body, "application/x-tar")
    with process.db.tenant(lease.tenant_id) as session:
        record_shard(session, lease, shard, lease_seconds=settings.lease_seconds)
    held.report(shard.hi)
    held.on_recorded()
