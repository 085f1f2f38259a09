"""One job of a million items beside fifty small ones, through the whole service.

``make bench ONLY=scale [ITEMS=1000000] [DECODE=real]``. Only the forward pass is faked; with
``DECODE=faked`` the decoding as well, which tells what queue, database and storage alone can do.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import statistics
import threading
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import func, select

from app.db.session import Database
from app.jobs.states import TERMINAL_JOB_STATES, ChunkState, ChunkTask
from app.jobs.tables import Chunk, Job
from app.log import configure_logging
from app.storage.s3 import ObjectStore
from tests.api_client import make_key
from tests.bench.service import BenchService, Parts, local_parts, running_processes, say
from tests.factories import make_tenant
from tests.faults.images import FEW_CLASSES, make_image
from tests.faults.library import BUCKET, MODEL, register_model
from tests.faults.plan import Plan
from tests.local_parts import scratch_folder
from tests.service import wait_until

SHARD_ITEMS = 8192
SMALL_JOBS, SMALL_ITEMS = 50, 20
#: Runs first, so that the big job is cut by a measured rate as on any machine in use.
WARM_ITEMS = 20_000
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run measured; seconds but where the name says otherwise."""

    accepted: float
    planned: float
    items_per_s: float
    poll_p95_ms: float
    api_mb: int
    dispatcher_mb: int
    export: float
    small_p95_chunks: float
    chunk: float
    io_mb: int
    where: dict[str, float]

    def line(self) -> str:
        """The last line of the bench."""
        return (
            f"scale accepted_s={self.accepted:.3f} planned_s={self.planned:.1f} "
            f"items_per_s={self.items_per_s:.0f} poll_p95_ms={self.poll_p95_ms:.1f} "
            f"api_mb={self.api_mb} dispatcher_mb={self.dispatcher_mb} "
            f"export_s={self.export:.1f} small_p95_chunks={self.small_p95_chunks:.2f}"
        )


class Tenant:
    """A tenant with the model, its pictures and a connection to the API."""

    def __init__(self, service: BenchService, store: ObjectStore) -> None:
        self.id = make_tenant(service.db)
        self._db = service.db
        register_model(service.db, store, service.settings.bucket, self.id, classes=FEW_CLASSES)
        key = make_key(service.db, service.settings, self.id)
        self.http = httpx2.Client(
            base_url=f"{service.url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )

    def submit(self, body: dict[str, Any]) -> str:
        """The id of a new job."""
        answer = self.http.post("/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def predict(self, manifest: str) -> str:
        """The id of a new job over a manifest."""
        return self.submit(
            {
                "kind": "predict",
                "input": {"manifest": manifest},
                "model": MODEL,
                "options": {"top_k": 1},
            }
        )

    def job(self, job_id: str) -> Job:
        """The job's row now."""
        with self._db.tenant(self.id) as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def wait_for_end(self, job_id: str, seconds: float = 1800) -> Job:
        """The job's row once it has ended well."""

        def ended() -> Job | None:
            job = self.job(job_id)
            return job if job.state in TERMINAL_JOB_STATES else None

        job = wait_until(ended, f"job {job_id} ends", seconds=seconds)
        assert job.state == "succeeded", (job.state, job.error)
        return job


class Poller:
    """Polls one job with its ETag as a client would, five times a second, and keeps the times.

    A process of its own: in this one it would wait for threads that no client has.
    """

    def __init__(self, tenant: Tenant, job_id: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._done = spawn.Event()
        self._answer: multiprocessing.SimpleQueue[list[float]] = spawn.SimpleQueue()
        url, headers = tenant.http.base_url, dict(tenant.http.headers)
        self._process = spawn.Process(
            target=_poll,
            args=(
                str(url.netloc, "ascii"),
                headers,
                f"/v1/jobs/{job_id}",
                self._done,
                self._answer,
            ),
            daemon=True,
        )
        self._process.start()

    def end(self) -> list[float]:
        """Stop polling; the milliseconds that each poll took."""
        self._done.set()
        milliseconds = self._answer.get()
        self._process.join()
        return milliseconds


def _poll(
    host: str,
    headers: dict[str, str],
    path: str,
    done: Event,
    answer: multiprocessing.SimpleQueue[list[float]],
) -> None:
    connection = http.client.HTTPConnection(host, timeout=60)
    milliseconds: list[float] = []
    while not done.wait(0.2):
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        milliseconds.append((time.perf_counter() - began) * 1000)
        assert response.status in (200, 304), response.status
        headers["If-None-Match"] = response.headers["ETag"]
    answer.put(milliseconds)


def put_pictures(store: ObjectStore, prefix: str, count: int) -> str:
    """``count`` different tiny images in shards of one object each; the manifest's address."""
    store.ensure_bucket(BUCKET)
    lines: list[str] = []
    for number in range(0, count, SHARD_ITEMS):
        key, offset, parts = f"{prefix}/{number:07d}.bin", 0, []
        for ordinal in range(number, min(number + SHARD_ITEMS, count)):
            image = make_image(ordinal + 1)
            lines.append(
                f'{{"key": "{key}", "offset": {offset}, "length": {len(image)}, '
                f'"custom_id": "i{ordinal:07d}"}}'
            )
            offset += len(image)
            parts.append(image)
        store.put(BUCKET, key, b"".join(parts))
    address = f"{prefix}/manifest.jsonl"
    store.put(BUCKET, address, "\n".join(lines).encode())
    return f"s3://{BUCKET}/{address}"


def run_small_jobs(
    service: BenchService, store: ObjectStore, begin: threading.Event
) -> list[float]:
    """Seconds from the 202 to the end of each small job, one submitted every half second."""
    tenants = [Tenant(service, store) for _ in range(5)]
    manifests = [put_pictures(store, f"{tenant.id}/small", SMALL_ITEMS) for tenant in tenants]
    begin.wait()
    jobs = []
    for number in range(SMALL_JOBS):
        tenant, manifest = tenants[number % 5], manifests[number % 5]
        jobs.append((tenant, tenant.predict(manifest)))
        time.sleep(0.5)
    rows = [tenant.wait_for_end(job_id) for tenant, job_id in jobs]
    return [(row.ended_at - row.created_at).total_seconds() for row in rows if row.ended_at]


def chunk_seconds(db: Database, job_id: str) -> float:
    """Median time that a chunk of the big job was in work."""
    with db.system() as session:
        spans = session.scalars(
            select(func.extract("epoch", Chunk.done_at - Chunk.running_at)).where(
                Chunk.job_id == job_id,
                Chunk.task == ChunkTask.PREDICT,
                Chunk.state == ChunkState.DONE,
            )
        ).all()
    return float(statistics.median(map(float, spans)))


def measure(parts: Parts, folder: Path, items: int, *, plan: Plan) -> Figures:
    """Run the big job with the small ones beside it, then export it."""
    store = ObjectStore.from_settings(parts.settings)
    with running_processes(parts, folder, inference_workers=WORKERS, plan=plan) as service:
        big = Tenant(service, store)
        say(f"drawing {items} images")
        manifest = put_pictures(store, f"{big.id}/big", items)
        big.wait_for_end(big.predict(put_pictures(store, f"{big.id}/warm", WARM_ITEMS)))
        begin, small_times = threading.Event(), []
        small = threading.Thread(
            target=lambda: small_times.extend(run_small_jobs(service, store, begin))
        )
        small.start()
        before = service.processor_seconds()
        began = time.perf_counter()
        job_id = big.predict(manifest)
        accepted = time.perf_counter() - began
        poller = Poller(big, job_id)
        wait_until(lambda: big.job(job_id).running_at is not None, "the big job runs", seconds=600)
        begin.set()
        say("planned; recognising, with small jobs beside it")
        job = big.wait_for_end(job_id)
        small.join()
        poll_milliseconds = poller.end()
        after = service.processor_seconds()
        assert job.queued_at
        assert job.running_at
        assert job.ended_at
        export = big.wait_for_end(
            big.submit({"kind": "export", "input": {"job": job_id}, "options": {"format": "jsonl"}})
        )
        assert export.ended_at
        assert (export.result or {})["rows"] == items
        chunk = chunk_seconds(service.db, job_id)
        return Figures(
            accepted=accepted,
            planned=(job.queued_at - job.created_at).total_seconds(),
            items_per_s=items / (job.ended_at - job.running_at).total_seconds(),
            poll_p95_ms=quantile(poll_milliseconds, 0.95),
            api_mb=service.peak_mb("api"),
            dispatcher_mb=service.peak_mb("dispatcher"),
            export=(export.ended_at - export.created_at).total_seconds(),
            small_p95_chunks=quantile(small_times, 0.95) / chunk,
            chunk=chunk,
            io_mb=service.peak_mb("io-1"),
            where={name: after[name] - before.get(name, 0) for name in after},
        )


def quantile(values: list[float], q: float) -> float:
    """The value that a fraction ``q`` of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def report(figures: Figures, items: int, what: str) -> None:
    """The table behind the last line."""
    say(f"{what}: {items} items, {WORKERS} worker processes, {os.cpu_count()} cores")
    say(f"  a chunk took {figures.chunk:.2f} s (median); the io worker's peak {figures.io_mb} MiB")
    say("  processor seconds, from submit to the last record:")
    for name, seconds in sorted(figures.where.items(), key=lambda entry: -entry[1]):
        say(f"    {name:28s} {seconds:8.1f}   {seconds / items * 1e6:6.1f} µs an item")


def main() -> None:
    """Measure as the environment says and print the line."""
    items = int(os.environ.get("ITEMS") or 1_000_000)
    decodes = os.environ.get("DECODE") or "real"
    configure_logging("WARNING", json=False)
    with (
        scratch_folder() as folder,
        local_parts(folder, image_batch_size=256, torch_threads=1) as parts,
    ):
        figures = measure(parts, folder, items, plan=Plan(fake_decode=decodes == "faked"))
    report(figures, items, f"decoding {decodes}, forward faked")
    say(figures.line())


if __name__ == "__main__":
    main()
