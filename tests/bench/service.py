"""Darkroom as a user's machine runs it, for benches: real processes on durable parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from sqlalchemy import func, select

from app.db.session import Database
from app.jobs.tables import WorkerRow
from app.settings import Settings
from app.stack.children import child_specs
from app.stack.postgres import LocalPostgres
from app.stack.processes import free_port
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.faults.plan import Plan
from tests.local_parts import build_database, parts_settings
from tests.service import environment, wait_until


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Parts:
    """Running parts: the settings that name them, and their process ids by name."""

    settings: Settings
    pids: dict[str, int]


@contextmanager
def local_parts(folder: Path, **overrides: object) -> Iterator[Parts]:
    """PostgreSQL, Valkey and S3 as a user's machine runs them; ``overrides`` are settings."""
    with ExitStack() as cleanup:
        postgres, valkey, s3 = LocalPostgres(folder), LocalValkey(folder), LocalS3(folder)
        for part in (postgres, valkey, s3):
            part.start()
            cleanup.callback(part.stop)
        settings = parts_settings(build_database(postgres), postgres, valkey, s3, **overrides)
        ObjectStore.from_settings(settings).ensure_bucket(settings.bucket)
        yield Parts(settings, {part.name: part.pid or 0 for part in (postgres, valkey, s3)})


@dataclass(slots=True)
class BenchService:
    """The processes of a running service, by name, and where its API answers."""

    url: str
    settings: Settings
    db: Database
    pids: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def peak_mb(self, name: str) -> int:
        """The most memory that a process and its children had, summed, in MiB."""
        return sum(_peak_kb(pid) for pid in _family(self.processes[name].pid)) // 1024

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far: each process's own, and that of its decode children apart."""
        seconds = {}
        pids = {name: process.pid for name, process in self.processes.items()} | self.pids
        for name, pid in pids.items():
            own, *children = _family(pid)
            seconds[name] = _cpu_seconds(own)
            if children:
                seconds[f"{name}'s children"] = sum(map(_cpu_seconds, children))
        return seconds


@contextmanager
def running_processes(
    parts: Parts, folder: Path, *, inference_workers: int, plan: Plan
) -> Iterator[BenchService]:
    """API, dispatcher and workers from the same table as ``darkroom up``; workers fake forward."""
    settings = parts.settings
    port = free_port()
    variables = environment(settings)
    # Workers stand behind the API, as they do under ``darkroom up``.
    variables.pop("DARKROOM_NICENESS")
    system_url = variables["SYSTEM_DATABASE_URL"]
    specs = child_specs(
        data_dir=folder,
        host="127.0.0.1",
        port=port,
        api_threads=settings.api_threads,
        inference_workers=inference_workers,
        environment=variables | {"PYTHONPATH": os.getcwd()},
        system_url=system_url,
    )
    db = Database.from_settings(settings)
    service = BenchService(f"http://127.0.0.1:{port}", settings, db, parts.pids)
    try:
        for spec in specs:
            if spec.name.startswith("training"):
                continue
            command, extra = list(spec.command), {}
            if spec.is_worker:
                command = [
                    "tests.faults.worker" if word == "worker.main" else word for word in command
                ]
                extra = plan.as_environment()
            with (folder / f"{spec.name}.log").open("wb") as log:
                service.processes[spec.name] = subprocess.Popen(
                    command, env={**(spec.environment or {}), **extra}, stdout=log, stderr=log
                )
        wait_until(lambda: _workers(db) >= inference_workers + 1, "workers register", seconds=120)
        wait_until(lambda: _answers(service.url), "the API answers", seconds=60)
        yield service
    finally:
        for process in service.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in service.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        db.close()


def _workers(db: Database) -> int:
    with db.system() as session:
        return (
            session.scalar(
                select(func.count()).select_from(WorkerRow).where(WorkerRow.gone_at.is_(None))
            )
            or 0
        )


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def _family(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                children += (task / "children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _peak_kb(pid: int) -> int:
    status = _read(pid, "status")
    return next(
        (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0
    )


def _cpu_seconds(pid: int) -> float:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    # Its own time and that of children that have ended: user, system, and both of those.
    return sum(map(int, fields[11:15])) / _TICKS


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
