"""The service's own processes for tests: a dispatcher in a thread, workers as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import select, text

from app.db.session import Database
from app.dispatch.run import run_loop
from app.jobs.progress import get_job
from app.jobs.states import TERMINAL_JOB_STATES
from app.jobs.submit import submit_ingest
from app.jobs.tables import Job, WorkerRow
from app.queues.celery import make_celery
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.uploads.receive import begin_upload, finish_upload, receive_bytes
from app.uploads.tables import UploadKind
from tests.nursery import Child, shared_nursery

T = TypeVar("T")
Process = subprocess.Popen[bytes] | Child
_ENVIRONMENT_NAMES = {
    "database_url": "DATABASE_URL",
    "system_database_url": "SYSTEM_DATABASE_URL",
    "redis_url": "REDIS_URL",
    "s3_endpoint_url": "S3_ENDPOINT_URL",
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
}


def environment(settings: Settings, **overrides: object) -> dict[str, str]:
    """The settings as the environment of a child process; ``overrides`` are field names."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields} | overrides
    variables = dict(os.environ)
    for name, value in values.items():
        if value is None:
            continue
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        variables[_ENVIRONMENT_NAMES.get(name, f"DARKROOM_{name.upper()}")] = text
    return variables


class WorkerHandle:
    """One worker process; killing it is part of the test."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        #: The id it registered under.
        self.id = ""

    def kill(self) -> None:
        """End it without a word, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it do nothing at all while the block runs, so that another gets the work."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to stop and wait until it has let go; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


class Service:
    """Starts workers against the session's parts and waits for what they do."""

    def __init__(
        self, settings: Settings, db: Database, folder: Path, module: str = "worker.main"
    ) -> None:
        self.settings = settings
        self.db = db
        self._module = module
        self._folder = folder
        self._processes: list[Process] = []
        self._count = 0

    def start_worker(
        self,
        role: str,
        *,
        module: str | None = None,
        network: Path | None = None,
        forked: bool = True,
        variables: Mapping[str, str] | None = None,
        **overrides: object,
    ) -> WorkerHandle:
        """Start a worker process and wait until it has registered.

        ``overrides`` are settings, ``variables`` further ones of its environment; ``module``
        is run instead of the service's, where a test puts something before the worker, and
        ``network`` is the network namespace of its host. One that is not ``forked`` imports all
        that it needs by itself, which takes seconds.
        """
        self._count += 1
        name = f"{self._folder.name}-{role}-{self._count}"
        log = self._folder / f"{name}.log"
        values = environment(self.settings, **{"worker_name": name, **overrides})
        values |= dict(variables or {})
        module, arguments = module or self._module, ["--role", role]
        process: Process
        if forked:
            process = shared_nursery().start(module, arguments, values, log, network)
        else:
            command = [sys.executable, "-m", module, *arguments]
            with log.open("wb") as output:
                process = subprocess.Popen(command, env=values, stdout=output, stderr=output)
        handle = WorkerHandle(process, log)
        self._processes.append(process)

        def registered() -> bool:
            assert process.poll() is None, log.read_text()
            with self.db.system() as session:
                found = session.scalar(
                    select(WorkerRow.id).where(
                        WorkerRow.pid == process.pid, WorkerRow.gone_at.is_(None)
                    )
                )
            handle.id = found or ""
            return found is not None

        wait_until(registered, f"{role} worker registers", seconds=120)
        return handle

    def end_workers(self) -> None:
        """Ask all workers to stop at once, then wait for each."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_workers(self, *roles: str) -> None:
        """Start a worker of each role, all at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_worker, roles))

    def send(self, tenant_id: str, content: bytes, kind: UploadKind = UploadKind.ARCHIVE) -> str:
        """The id of a new upload with this content; weights are ready, an archive is stored."""
        store, bucket = ObjectStore.from_settings(self.settings), self.settings.bucket
        store.ensure_bucket(bucket)
        with self.db.tenant(tenant_id) as session:
            upload = begin_upload(session, tenant_id, kind=kind, filename="upload")
        received = receive_bytes(
            store, bucket, upload.object_key, [content], max_bytes=self.settings.upload_max_bytes
        )
        with self.db.tenant(tenant_id) as session:
            finish_upload(
                session,
                tenant_id,
                upload.id,
                size_bytes=received.size_bytes,
                sha256=received.sha256,
            )
        return upload.id

    def ingest(self, tenant_id: str, content: bytes) -> Job:
        """Send an archive and submit its unpacking."""
        upload_id = self.send(tenant_id, content)
        with self.db.tenant(tenant_id) as session:
            return submit_ingest(session, tenant_id, upload_id)

    def wait_for_end(self, tenant_id: str, job_id: str, *, seconds: float = 60) -> Job:
        """Wait until the job is terminal."""

        def ended() -> Job | None:
            job = self.look_at(tenant_id, job_id)
            return job if job.state in TERMINAL_JOB_STATES else None

        return wait_until(ended, f"job {job_id} ends", seconds=seconds)

    def look_at(self, tenant_id: str, job_id: str) -> Job:
        """The job's row now."""
        with self.db.tenant(tenant_id) as session:
            return get_job(session, tenant_id, job_id)


def wait_until(look: Callable[[], T | None], what: str, *, seconds: float = 30) -> T:
    """Look again and again until there is an answer; fails after ``seconds``."""
    given_up = threading.Event()
    timer = threading.Timer(seconds, given_up.set)
    timer.start()
    try:
        while not given_up.wait(0.05):
            found = look()
            if found:
                return found
        raise AssertionError(f"waited {seconds} s in vain until {what}")
    finally:
        timer.cancel()


def end_open_work(db: Database) -> None:
    """Cancel what earlier tests left open: a dispatcher would ring for it, and workers take it."""
    with db.system() as session:
        session.execute(
            text(
                "UPDATE chunks SET state = 'cancelled', lease_until = NULL, worker_id = NULL "
                "WHERE state IN ('pending', 'running')"
            )
        )
        session.execute(
            text(
                "UPDATE jobs SET state = 'cancelled', ended_at = now(), "
                "sealed_at = coalesce(sealed_at, now()), "
                "cancelled = total - succeeded - failed - skipped - expired "
                "WHERE ended_at IS NULL"
            )
        )


@contextmanager
def running_service(
    settings: Settings,
    db: Database,
    folder: Path,
    module: str = "worker.main",
    *,
    goes_on: bool = False,
) -> Iterator[Service]:
    """A dispatcher, and a handle to start workers of ``module``; all ends with the block.

    ``goes_on`` leaves open what is open in the database, where the test itself left it so.
    """
    if not goes_on:
        end_open_work(db)
    stopping = threading.Event()
    celery = make_celery(settings)
    dispatcher = threading.Thread(target=run_loop, args=(settings, db, celery, stopping))
    with ExitStack() as cleanup:
        dispatcher.start()
        cleanup.callback(dispatcher.join)
        cleanup.callback(stopping.set)
        service = Service(settings, db, folder, module)
        cleanup.callback(service.end_workers)
        yield service
