"""Write the results of a job to a file."""

from __future__ import annotations

from app.exports.run import ExportStoppedError, StoredFile, write_export
from app.jobs.artifacts import add_artifact
from app.jobs.record import record_chunk
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import let_go


def export_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Stream the rows to the object store, then register file and manifest with the end."""
    lease = held.lease
    try:
        exported = write_export(
            process.db,
            process.store,
            process.settings.bucket,
            tenant_id=lease.tenant_id,
            job_id=lease.input["job"],
            export_job_id=lease.job_id,
            attempt=lease.attempt,
            format=lease.options["format"],
            only=lease.options["only"],
            include_retries=lease.options.get("include_retries", False),
            on_progress=held.report,
            should_stop=held.should_stop,
        )
    except ExportStoppedError:
        let_go(process, held)
        return
    files: tuple[StoredFile, ...] = (exported, exported.manifest)
    with process.db.tenant(lease.tenant_id) as session:
        # The fence first: an attempt that lost its lease registers nothing.
        record_chunk(
            session, lease, result={"rows": exported.rows, "counts": dict(exported.counts)}
        )
        for file in files:
            add_artifact(
                session,
                lease.tenant_id,
                lease.job_id,
                name=file.name,
                media_type=file.media_type,
                object_key=file.object_key,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
            )
