"""PostgreSQL and the S3 server on a disk that really fills: a small one in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from pydantic import SecretStr

from app.db.session import Database
from app.errors import StorageError, UnavailableError
from app.jobs.plan import plan_job
from app.jobs.states import ChunkTask, JobState
from app.settings import Settings
from app.stack.backoff import Backoff
from app.stack.part import Part
from app.stack.postgres import LocalPostgres
from app.stack.processes import DiskFullError, PartMissingError
from app.stack.s3 import LocalS3
from app.stack.supervisor import Supervisor
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.jobs import chunk_ids, claim, look_at_job
from tests.local_parts import build_database
from tests.plans import BUCKET, all_items, put, submit
from tests.service import wait_until

PATIENCE = 60
_EACH_BYTES = 64 * 1024
_WRITE_LOG = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1 << 20))"

P = TypeVar("P", bound=Part)


class SmallDisk:
    """A file system in memory with room for a fresh database and little else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free; again, where something was freed meanwhile."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(b"x" * _EACH_BYTES) == _EACH_BYTES:
                    continue
            except OSError:
                return

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def make_disk() -> Iterator[Callable[[int], SmallDisk]]:
    """Disks of so many MiB."""
    folders: list[Path] = []

    def make(mebibytes: int) -> SmallDisk:
        folder = Path(tempfile.mkdtemp(prefix="darkroom-disk-"))
        folder.chmod(0o711)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=711", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            folder.rmdir()
            pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
        folders.append(folder)
        return SmallDisk(folder)

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    yield make
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


class Stack:
    """A PostgreSQL of its own on a small disk, and connections to it."""

    def __init__(self, disk: SmallDisk, postgres: LocalPostgres) -> None:
        self.disk, self.postgres = disk, postgres
        self.db = Database(*build_database(postgres), pool_size=3)

    def write_log_until_it_dies(self) -> None:
        """Let PostgreSQL write to its log of changes until there is no room for that either."""

        def write() -> None:
            with psycopg.connect(self.postgres.admin_url, autocommit=True) as connection:
                while True:
                    connection.execute(_WRITE_LOG)

        with pytest.raises(psycopg.OperationalError):
            write()


@pytest.fixture
def stack(make_disk: Callable[[int], SmallDisk]) -> Iterator[Stack]:
    disk = make_disk(110)
    postgres = start(LocalPostgres(disk.folder))
    with postgres, ExitStack() as cleanup:
        stack = Stack(disk, postgres)
        cleanup.callback(stack.db.close)
        yield stack


def start(part: P) -> P:
    """Start a part, or skip the test where its program is not installed."""
    try:
        part.start()
    except PartMissingError as error:
        pytest.skip(str(error))
    return part


def submit_until_full(db: Database, tenant_id: str, source: dict[str, str]) -> list[str]:
    """Small rows fit in what is left of the last pages; the jobs that were accepted before none."""
    accepted: list[str] = []

    def submit_on() -> None:
        for _ in range(2_000):
            accepted.append(submit(db, tenant_id, source))

    with pytest.raises(UnavailableError) as full:
        submit_on()
    assert (full.value.code, full.value.retry_after_seconds) == ("storage_full", 60)
    return accepted


def test_full_database_refuses_and_loses_nothing_and_goes_on_once_there_is_room(
    stack: Stack, objects: ObjectStore, settings: Settings
) -> None:
    objects.ensure_bucket(BUCKET)
    tenant_id = make_tenant(stack.db)
    rows = "\n".join(f'{{"key": "{number}.png"}}' for number in range(20_000))
    source = {"manifest": put(objects, f"{tenant_id}/many.jsonl", rows)}
    planned = submit(stack.db, tenant_id, source)
    (chunk_id,) = chunk_ids(stack.db, planned)
    lease = claim(stack.db, tenant_id, chunk_id, task=ChunkTask.PLAN)

    def plan() -> bool:
        return plan_job(stack.db, objects, settings, lease, should_stop=lambda: False)

    stack.disk.fill()
    with pytest.raises(UnavailableError) as full:
        plan()
    assert full.value.code == "storage_full"
    accepted = [planned, *submit_until_full(stack.db, tenant_id, source)]
    # Reading goes on.
    states = {look_at_job(stack.db, tenant_id, job_id).state for job_id in accepted}
    assert states == {JobState.VALIDATING}
    stack.disk.make_room()
    assert plan()
    assert look_at_job(stack.db, tenant_id, planned).state == JobState.QUEUED
    assert len(all_items(stack.db, planned)) == 20_000
    assert submit(stack.db, tenant_id, source)


def test_database_that_died_of_a_full_disk_is_started_again_as_soon_as_there_is_room(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = make_tenant(stack.db)
    job_id = submit(stack.db, tenant_id, {"prefix": "s3://photos/"})
    tries: list[DiskFullError] = []
    start = stack.postgres.start

    def try_to_start() -> None:
        try:
            start()
        except DiskFullError as error:
            tries.append(error)
            raise

    monkeypatch.setattr(stack.postgres, "start", try_to_start)
    lines: list[str] = []
    supervisor = Supervisor(
        [],
        logs_dir=stack.disk.folder,
        parts=[stack.postgres],
        say=lines.append,
        backoff=Backoff(full_disk_seconds=0.2),
    )
    supervisor.start()
    stack.disk.fill()
    stack.write_log_until_it_dies()

    def tried_twice() -> bool:
        stack.disk.fill()
        return len(tries) >= 2

    # The first failure is told once, and the next try comes by itself.
    assert supervisor.run_until(tried_twice, PATIENCE)
    assert sum("is full: free some space" in line for line in lines) == 1
    stack.disk.make_room()
    answers = "PostgreSQL answers again"
    assert supervisor.run_until(lambda: any(answers in line for line in lines), PATIENCE)

    def found() -> bool:
        try:
            return look_at_job(stack.db, tenant_id, job_id).state == JobState.VALIDATING
        except UnavailableError:
            # The connections of before are told apart from new ones only by failing.
            return False

    assert wait_until(found, "the job that was accepted is there")


def test_database_is_not_started_on_a_full_disk_and_says_so(stack: Stack) -> None:
    stack.disk.fill()
    stack.write_log_until_it_dies()
    stack.postgres.stop()
    stack.disk.fill()
    with pytest.raises(DiskFullError, match="is full: free some space"):
        stack.postgres.start()
    stack.disk.make_room()
    stack.postgres.start()


def test_full_object_store_takes_nothing_and_keeps_what_it_had(
    make_disk: Callable[[int], SmallDisk], settings: Settings
) -> None:
    disk = make_disk(4)
    s3 = start(LocalS3(disk.folder, buckets=(BUCKET,)))
    keys = {
        "s3_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": SecretStr(s3.access_key_id),
        "aws_secret_access_key": SecretStr(s3.secret_access_key),
    }
    with s3:
        store = ObjectStore.from_settings(settings.model_copy(update=keys))
        store.put(BUCKET, "before", b"b" * 1000, "text/plain")
        disk.fill()
        with pytest.raises(StorageError) as refused:
            store.put(BUCKET, "meanwhile", b"m" * 1_000_000, "text/plain")
        assert refused.value.retryable
        assert store.read(BUCKET, "before") == b"b" * 1000
        disk.make_room()
        store.put(BUCKET, "meanwhile", b"m" * 1_000_000, "text/plain")
        assert store.read(BUCKET, "meanwhile") == b"m" * 1_000_000
