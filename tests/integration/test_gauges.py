"""What Prometheus is told by dispatcher and workers, read over HTTP from real processes' parts."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch.cleanup import Cleaned
from app.dispatch.gauges import DispatcherGauges
from app.dispatch.sweep import Swept, sweep_once
from app.gauges import serve_gauges
from app.jobs.tables import Chunk
from app.queues.names import Queue
from app.settings import Settings
from tests.doors import do_it, failing, ring, worker_inside
from tests.factories import make_tenant
from tests.jobs import add_planned_job, add_worker, chunk_ids, claim, let_lease_end, make_job
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Every sample as ``name{label values}`` → number."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        sample.name
        + ("{" + ",".join(sample.labels.values()) + "}" if sample.labels else ""): float(
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def served(settings: Settings) -> Settings:
    """Settings with a port for gauges."""
    return settings.model_copy(update={"metrics_port": free_port()})


def test_dispatcher_tells_what_waits_what_runs_and_what_went_wrong(
    quiet: Database, served: Settings
) -> None:
    owner = make_tenant(quiet)
    with quiet.system() as session:
        add_worker(session, slots=3)
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 2, 2, 2, 2)
    first, second, third, _ = chunk_ids(quiet, job_id)
    with quiet.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.job_id == job_id)
            .values(due_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 1))
        )
    claim(quiet, owner, first)
    claim(quiet, owner, second)
    claim(quiet, owner, third)
    let_lease_end(quiet, third)
    gauges = DispatcherGauges(served, quiet)
    assert serve_gauges(served, gauges.registry) == served.metrics_port
    gauges.add_sweep(sweep_once(quiet, max_kills=5))
    gauges.add_sweep(Swept(narrowed=2, poisonous=1))
    gauges.add_round(Cleaned(repaired=3))
    gauges.bells.inc(7)
    found = scrape(served.metrics_port)
    expected = {
        "darkroom_chunks_runnable{inference}": 2,
        "darkroom_chunks_runnable{io}": 0,
        "darkroom_chunks_suspect{inference}": 1,
        "darkroom_leases_running{inference}": 2,
        "darkroom_workers_alive{inference}": 1,
        "darkroom_slots_free{inference}": 1,
        "darkroom_jobs_open{running}": 1,
        "darkroom_jobs_open{queued}": 0,
        "darkroom_leases_freed_total": 1,
        "darkroom_chunks_narrowed_total": 2,
        "darkroom_items_worker_killed_total": 1,
        "darkroom_drift_repaired_total": 3,
        "darkroom_bells_rung_total": 7,
        "darkroom_sweeps_total": 2,
        "darkroom_database_up": 1,
        "darkroom_redis_up": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["darkroom_wait_seconds{inference}"] >= 60
    assert found["process_resident_memory_bytes"] > 0


def test_parts_that_are_away_are_gauges_and_no_failed_scrape(served: Settings) -> None:
    nowhere = Database("postgresql://a:b@127.0.0.1:1/none", "postgresql://a:b@127.0.0.1:1/none")
    away = served.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    assert serve_gauges(away, DispatcherGauges(away, nowhere).registry)
    found = scrape(away.metrics_port)
    nowhere.close()
    assert (found["darkroom_database_up"], found["darkroom_redis_up"]) == (0, 0)
    assert not [name for name in found if name.startswith("darkroom_chunks_runnable")]


def test_port_that_is_off_or_taken_is_no_reason_not_to_work(
    quiet: Database, served: Settings
) -> None:
    registry = DispatcherGauges(served, quiet).registry
    assert serve_gauges(served.model_copy(update={"metrics_port": 0}), registry) is None
    with socket.socket() as taken:
        taken.bind((served.api_host, served.metrics_port))
        taken.listen()
        assert serve_gauges(served, registry) is None


def test_worker_tells_what_it_holds_and_how_its_leases_ended(
    quiet: Database, served: Settings
) -> None:
    owner = make_tenant(quiet)
    _, chunks = make_job(quiet, owner, 2, 2)
    process = worker_inside(served, Queue.IO, quiet)
    serve_gauges(served, process.gauges.registry)
    seen: dict[str, float] = {}

    def work(process: WorkerProcess, held: HeldLease) -> None:
        seen.update(scrape(served.metrics_port))
        do_it(process, held)

    for chunk, one in zip(chunks, (work, failing(RuntimeError("a fault"))), strict=True):
        ring(process, owner, chunk, one)
    process.gauges.add_items(5, fetch=1.5, decode=2, forward=0.5)
    assert seen["darkroom_worker_leases_held"] == 1
    assert seen["darkroom_worker_slots_busy"] == 1
    assert 0 < seen["darkroom_worker_still_seconds"] < 60
    found = scrape(served.metrics_port)
    assert found["darkroom_worker_leases_held"] == 0
    assert found["darkroom_worker_still_seconds"] == 0
    assert found["darkroom_worker_chunks_total{done,predict}"] == 1
    assert found["darkroom_worker_chunks_total{failed,predict}"] == 1
    assert found["darkroom_worker_items_total"] == 5
    assert found["darkroom_worker_stage_seconds_total{decode}"] == 2


def test_every_gauge_is_explained_in_the_page_for_operations(
    quiet: Database, settings: Settings
) -> None:
    process = WorkerProcess(settings, Queue.IO)
    process.db.close()
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    told = set(re.findall(r"darkroom_[a-z_]+[a-z]", page.split("## What each gauge means")[1]))
    registries = (DispatcherGauges(settings, quiet).registry, process.gauges.registry)
    exposed = {
        sample.name
        for registry in registries
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("darkroom_") and not sample.name.endswith("_created")
    }
    # Counters by label show no sample before the first.
    assert told - exposed <= {
        "darkroom_worker_chunks_total",
        "darkroom_worker_stage_seconds_total",
    }
    assert exposed <= told
