"""How fast an archive is ingested by real processes: from the submit to the ready upload.

python -m tests.bench.ingest ARCHIVE
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.db.session import Database
from app.jobs.tables import Job
from app.log import configure_logging
from app.settings import Settings
from tests.bench.service import local_parts
from tests.factories import make_tenant
from tests.local_parts import scratch_folder
from tests.service import running_service

_MIB_KB = 1024


def ingest(settings: Settings, folder: Path, content: bytes) -> tuple[Job, int]:
    """The job of an archive, ended, and the peak memory of its worker in MiB."""
    db = Database.from_settings(settings)
    try:
        with running_service(settings, db, folder) as service:
            worker = service.start_worker("io", forked=False)
            tenant_id = make_tenant(db)
            job = service.ingest(tenant_id, content)
            job = service.wait_for_end(tenant_id, job.id, seconds=3600)
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
    finally:
        db.close()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return job, int(peak.split()[1]) // _MIB_KB


def main(path: Path) -> None:
    configure_logging("WARNING", json=False)
    with scratch_folder() as folder, local_parts(folder) as parts:
        job, worker_mb = ingest(parts.settings, folder, path.read_bytes())
    assert job.ended_at is not None
    seconds = (job.ended_at - job.created_at).total_seconds()
    done = job.succeeded + job.failed
    sys.stdout.write(
        f"ingest items={done} failed={job.failed} state={job.state} seconds={seconds:.2f} "
        f"images_per_s={done / seconds:.0f} worker_mb={worker_mb}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
