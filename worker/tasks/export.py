"""Write the results of a job to a file.

A file is written in one go or not at all, so an export gives its slot to nobody: the relay keeps
one for other work (:mod:`app.dispatch.relay`).
"""

from __future__ import annotations

from app.exports.run import ExportStoppedError, StoredFile, write_export
from app.jobs.artifacts import add_artifact
from app.jobs.record import record_chunk, record_part
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.door import let_go

#: An export is shown to get on each time it has written so many rows more, some seconds' worth.
#: By rows and not by time, so that one that dies of a row always comes as far as before.
REACH_ROWS = 100_000


def export_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Stream the rows to the object store, then register file and manifest with the end.

    Only a suspect that has waited for its turn alone is given way to, and then the export begins
    anew: no dearer than the kill that may follow beside it.
    """
    lease = held.lease
    reach = _Reach(process, held)

    def should_stop() -> bool:
        return held.should_stop() or (
            process.gate.wanted_seconds > process.settings.io_turn_seconds
        )

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
            on_progress=reach.report,
            should_stop=should_stop,
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


class _Reach:
    """How far an export has come, and whether that is further than any attempt before it.

    Then it is no suspect any more, like a training with a new checkpoint: what killed an
    earlier attempt is behind it, and it lets others in.
    """

    def __init__(self, process: WorkerProcess, held: HeldLease) -> None:
        self._process = process
        self._held = held
        self._furthest = int((held.lease.cursor or {}).get("rows", 0))

    def report(self, rows: int) -> None:
        """Remember so many rows written.

        Raises:
            FencedError: the lease was lost.
            UnavailableError: the database does not answer.
        """
        self._held.report(rows)
        reached = rows - rows % REACH_ROWS
        if reached <= self._furthest:
            return
        lease = self._held.lease
        with self._process.db.tenant(lease.tenant_id) as session:
            record_part(
                session,
                lease,
                cursor={"rows": reached},
                gained=True,
                lease_seconds=self._process.settings.lease_seconds,
            )
        self._furthest = reached
        self._held.on_recorded()
