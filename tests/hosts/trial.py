"""Workers on hosts of their own, one of which is cut off for longer than its lease lasts.

``unshare --net … python -m tests.hosts.trial`` runs it and ends with one line of figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from app.clock import monotonic_seconds
from app.db.session import Database
from app.jobs.states import ChunkState, JobState
from app.jobs.submit import submit_predict
from app.jobs.tables import Chunk, Item, Job, WorkerRow
from app.locations import ANYWHERE
from app.log import configure_logging
from app.stack.postgres import LocalPostgres
from app.stack.processes import free_port
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.faults.library import MODEL, draw_pictures, put_manifest, register_model
from tests.faults.oracle import answer_of
from tests.hosts.forward import forwarded, to_port, to_socket
from tests.hosts.network import HERE, Host, switched_hosts
from tests.local_parts import build_database, parts_settings, scratch_folder
from tests.service import Service, WorkerHandle, running_service, wait_until

ITEMS, CHUNK_ITEMS = 300, 20
LEASE_SECONDS = 2.0
OPTIONS = {"top_k": 4, "threshold": 0.0, "activation": "softmax"}


class Trial:
    """The service on this host, and what its workers on others are told of where it is."""

    def __init__(self, service: Service, store: ObjectStore, reach: dict[str, Any]) -> None:
        self.service, self.db, self.store, self._reach = service, service.db, store, reach
        self.tenant_id = make_tenant(self.db)
        register_model(self.db, store, service.settings.bucket, self.tenant_id)

    def start_worker(self, host: Host, role: str, **more: Any) -> WorkerHandle:
        """A worker on that host."""
        return self.service.start_worker(role, network=host.network, **self._reach, **more)

    def submit(self, seed: int) -> tuple[Job, dict[str, str]]:
        """A job of small images, and the right answer of each."""
        pictures = draw_pictures(seed, ITEMS)
        manifest = put_manifest(self.store, f"{self.tenant_id}/{seed}", pictures)
        with self.db.tenant(self.tenant_id) as session:
            job = submit_predict(
                session,
                self.tenant_id,
                source={"manifest": manifest},
                model=MODEL,
                options=OPTIONS,
                own_bucket=self.service.settings.bucket,
                locations=ANYWHERE,
            )
        return job, {one.custom_id: answer_of(one.data) for one in pictures}

    def wait_for_end(self, job: Job, answers: dict[str, str]) -> None:
        """Wait until the job has ended, with every item once and rightly answered."""
        ended = self.service.wait_for_end(self.tenant_id, job.id, seconds=90)
        assert ended.state == JobState.SUCCEEDED, (ended.state, ended.error)
        assert (ended.total, ended.succeeded) == (ITEMS, ITEMS)
        with self.db.tenant(self.tenant_id) as session:
            rows = session.execute(
                select(Item.custom_id, Item.prediction).where(Item.job_id == job.id)
            ).all()
        assert len(rows) == ITEMS
        stored = {row.custom_id: " ".join(name for name, _ in row.prediction) for row in rows}
        assert stored == answers

    def held_by(self, worker: WorkerHandle) -> list[Chunk]:
        """The chunks that a worker works on."""
        with self.db.tenant(self.tenant_id) as session:
            held = select(Chunk).where(
                Chunk.worker_id == worker.id, Chunk.state == ChunkState.RUNNING
            )
            return list(session.scalars(held))

    def count_items(self, chunk: Chunk, *, newer: bool) -> int:
        """Stored items of a chunk by whether a later attempt than this one recorded them."""
        later = Item.attempt > chunk.attempt
        with self.db.tenant(self.tenant_id) as session:
            return session.scalars(
                select(func.count()).where(
                    Item.job_id == chunk.job_id,
                    Item.ordinal.between(chunk.lo, chunk.hi - 1),
                    later if newer else ~later,
                )
            ).one()


@contextmanager
def opened(hosts: list[Host]) -> Iterator[Trial]:
    """PostgreSQL, Valkey, S3 and a dispatcher here; other hosts reach them at this address."""
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(scratch_folder())
        postgres = cleanup.enter_context(LocalPostgres(folder, fast=True))
        valkey = cleanup.enter_context(LocalValkey(folder))
        s3 = cleanup.enter_context(LocalS3(folder))
        redis_port = free_port()
        urls = build_database(postgres)
        targets = {
            postgres.port: to_port(postgres.port),
            s3.port: to_port(s3.port),
            redis_port: to_socket(valkey.socket_path),
        }
        cleanup.enter_context(forwarded(HERE, targets))
        settings = parts_settings(
            urls,
            postgres,
            valkey,
            s3,
            cache_dir=folder / "cache",
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=0.5,
            sweep_seconds=0.2,
            ring_again_seconds=1,
            dispatch_seconds=0.05,
            chunk_items=CHUNK_ITEMS,
            decode_processes=1,
            torch_threads=1,
            device="cpu",
            require_durable=False,
            database_pool=5,
        )
        db = Database.from_settings(settings)
        cleanup.callback(db.close)
        logs = folder / "logs"
        service = cleanup.enter_context(running_service(settings, db, logs, "tests.faults.worker"))
        there = {
            "database_url": urls[0].replace("127.0.0.1", HERE),
            "system_database_url": urls[1].replace("127.0.0.1", HERE),
            "redis_url": f"redis://{HERE}:{redis_port}",
            "s3_endpoint_url": s3.endpoint_url.replace("127.0.0.1", HERE),
        }
        store = ObjectStore.from_settings(settings)
        store.ensure_bucket(settings.bucket)
        yield Trial(service, store, there)


def run(trial: Trial, hosts: list[Host], signs: Path) -> str:
    """Cut a worker off while it holds a recognised chunk; it records after another has."""
    far, near, reader = hosts
    signs.mkdir()
    told = {"DARKROOM_SIGNS": str(signs)}
    with ThreadPoolExecutor() as both:
        both.submit(trial.start_worker, reader, "io")
        lonely = trial.start_worker(far, "inference", module="tests.hosts.worker", variables=told)
    job, answers = trial.submit(1)
    wait_until((signs / "recognised").exists, "the far worker has recognised a chunk", seconds=60)
    held = trial.held_by(lonely)
    assert held
    far.cut()
    cut_at = monotonic_seconds()
    others = trial.start_worker(near, "inference")
    trial.wait_for_end(job, answers)

    (signs / "go-on").touch()
    wait_until((signs / "recording").exists, "the far worker sends its record")
    assert "lease_lost" not in lonely.log.read_text()
    cut_seconds = monotonic_seconds() - cut_at
    assert cut_seconds > LEASE_SECONDS
    far.join()
    wait_until(lambda: "lease_lost" in lonely.log.read_text(), "the late record is refused")
    trial.wait_for_end(job, answers)
    for chunk in held:
        assert trial.count_items(chunk, newer=False) == 0
        assert trial.count_items(chunk, newer=True) == CHUNK_ITEMS
    with trial.db.tenant(trial.tenant_id) as session:
        gone = session.scalar(select(WorkerRow.gone_at).where(WorkerRow.id == lonely.id))
    assert gone is None
    # It is a worker as good as any again: alone, it does the next job.
    assert others.stop() == 0
    second, more = trial.submit(2)
    trial.wait_for_end(second, more)
    return (
        f"hosts=3 items={2 * ITEMS} lost=0 twice=0 retaken_chunks={len(held)} "
        f"cut_s={cut_seconds:.1f} lease_s={LEASE_SECONDS:.1f}"
    )


def main() -> None:
    configure_logging("WARNING", json=False)
    with (
        switched_hosts(3) as hosts,
        opened(hosts) as trial,
        tempfile.TemporaryDirectory(prefix="darkroom-signs-") as folder,
    ):
        line = run(trial, hosts, Path(folder) / "signs")
    print(line)  # noqa: T201  (a command speaks)


if __name__ == "__main__":
    main()
