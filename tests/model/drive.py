"""The moves of clients, workers and dispatchers, made on the database and in the model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.dispatch.drift import recount_jobs
from app.dispatch.relay import relay_once
from app.dispatch.sweep import sweep_once
from app.errors import ConflictError, FencedError
from app.jobs.cancel import cancel_job
from app.jobs.claim import (
    claim_chunk,
    extend_lease,
    look_at_lease,
    release_chunk,
    suspect_kills,
)
from app.jobs.item_rows import ItemRow
from app.jobs.narrow import narrow_failing_chunk
from app.jobs.pause import pause_job, resume_job
from app.jobs.record import (
    record_chunk,
    record_failure,
    record_prefix,
    record_stopped,
)
from app.jobs.states import ChunkTask, ItemState, JobKind, JobState
from app.jobs.tables import Chunk, Job, WorkerRow
from app.queues.names import Queue
from tests.factories import add_job, add_version, make_tenant
from tests.jobs import add_chunk, add_planned_job, add_worker, chunk_ids
from tests.model.bells import HeardBell, RememberedBells
from tests.model.clock import TimedDatabase
from tests.model.values import (
    LEASE_SECONDS,
    MAX_KILLS,
    UNBOUNDED,
    Attempt,
    Bounds,
    ModelJob,
    item_rows,
)
from tests.model.world import World

RING_AGAIN_SECONDS = 5.0
# More than there are chunks: which of them are rung first would hang on their random ids.
_SLOTS = 500


class Driver:
    """Makes each move with the real functions, and asserts that they answer as the model does."""

    def __init__(self, timed: TimedDatabase) -> None:
        timed.clear()
        self.timed, self.db = timed, timed.db
        self.world = World(timed.now(), self._find_chunk)
        self.bells = RememberedBells()
        self.tenants = [make_tenant(self.db) for _ in range(2)]
        self.versions = {tenant_id: self._add_version(tenant_id) for tenant_id in self.tenants}
        self.attempts: list[Attempt] = []
        self.workers: list[str] = []
        for queue in (Queue.INFERENCE, Queue.IO):
            self._start_worker(queue)

    def advance(self, seconds: float) -> None:
        self.timed.advance(seconds)
        self.world.now += seconds

    def submit(self, tenant_id: str, sizes: Sequence[int], bounds: Bounds = UNBOUNDED) -> None:
        with self.db.tenant(tenant_id) as session:
            job_id = add_planned_job(session, tenant_id, *sizes)
            row = session.get_one(Job, job_id)
            row.model_version_id = self.versions[tenant_id]
            self._bind(row, bounds)
        job = self.add_job(job_id, tenant_id, JobKind.PREDICT, JobState.QUEUED, bounds)
        job.total, job.sealed, job.was_queued = sum(sizes), True, True
        lo = 0
        for chunk_id, size in zip(chunk_ids(self.db, job_id), sizes, strict=True):
            self.world.add_chunk(job_id, chunk_id, ChunkTask.PREDICT, lo, lo + size)
            lo += size

    def submit_unread(self, tenant_id: str, kind: JobKind, bounds: Bounds = UNBOUNDED) -> None:
        """A job whose items are found on the way: by a plan, or in an archive."""
        task, state = {
            JobKind.PREDICT: (ChunkTask.PLAN, JobState.VALIDATING),
            JobKind.INGEST: (ChunkTask.INGEST, JobState.QUEUED),
        }[kind]
        with self.db.tenant(tenant_id) as session:
            job = add_job(session, tenant_id, kind, state)
            job.input = {"prefix": "s3://photos/"}
            job.model_version_id = self.versions[tenant_id]
            if state == JobState.QUEUED:
                job.queued_at = func.now()
            self._bind(job, bounds)
            chunk = add_chunk(session, job, task)
        self.add_job(job.id, tenant_id, kind, state, bounds).was_queued = state == JobState.QUEUED
        self.world.add_chunk(job.id, chunk.id, task)

    def claim(
        self, chunk_id: str, task: ChunkTask, worker_id: str, *, alone: bool = True
    ) -> Attempt | None:
        job = self.world.job_of(chunk_id)
        with self.db.tenant(job.tenant_id) as session:
            lease = claim_chunk(
                session,
                job.tenant_id,
                chunk_id,
                task=task,
                worker_id=worker_id,
                lease_seconds=LEASE_SECONDS,
                kills=suspect_kills(session, job.tenant_id, chunk_id) if alone else 0,
            )
        expected = self.world.chunks[chunk_id].task == task and self.world.claim(
            chunk_id, worker_id, alone=alone
        )
        assert (lease is not None) == expected, (lease, self.world.chunks[chunk_id], job.state)
        if lease is None:
            return None
        chunk = self.world.chunks[chunk_id]
        assert (lease.attempt, lease.lo, lease.hi) == (chunk.attempt, chunk.lo, chunk.hi)
        if lease.has_items:
            found = [row[0] for row in (lease.items or {})["rows"]]
            assert found == [job.name_of(ordinal) for ordinal in range(lease.lo, lease.hi)]
        attempt = Attempt(lease, (lease.cursor or {}).get("position", 0), None)
        self.attempts.append(attempt)
        return attempt

    def answer(self, bell: HeardBell, worker_id: str) -> Attempt | None:
        assert bell.tenant_id == self.world.job_of(bell.chunk_id).tenant_id
        return self.claim(bell.chunk_id, bell.task, worker_id)

    def beat(self, attempt: Attempt, *, extend: bool) -> None:
        lease = attempt.lease
        with self.db.tenant(lease.tenant_id) as session:
            if extend:
                attempt.told = extend_lease(session, lease, lease_seconds=LEASE_SECONDS)
            else:
                attempt.told = look_at_lease(session, lease)
        if extend:
            assert attempt.told == self.world.extend(lease.chunk_id, lease.attempt)
        else:
            held = self.world.holds(lease.chunk_id, lease.attempt)
            assert attempt.told == (self.world.jobs[lease.job_id].state if held else None)

    def release(self, attempt: Attempt, delay: float, *, failed: bool) -> None:
        lease = attempt.lease
        with self.db.tenant(lease.tenant_id) as session:
            done = release_chunk(session, lease, delay_seconds=delay, failed=failed)
        assert done == self.world.release(lease.chunk_id, lease.attempt, delay, failed=failed)

    def is_retry(self, attempt: Attempt) -> bool:
        """Whether its job tries again what another left."""
        return self.world.jobs[attempt.lease.job_id].retry_of is not None

    def holds(self, attempt: Attempt) -> bool:
        """Whether the attempt may still write."""
        return self.world.holds(*key(attempt))

    def record(self, attempt: Attempt, rows: Mapping[int, ItemState]) -> None:
        taken = self.write(
            attempt, lambda s: record_chunk(s, attempt.lease, self.item_rows(attempt, rows))
        )
        assert taken == self.world.record(*key(attempt), rows)

    def record_prefix(self, attempt: Attempt, rows: Mapping[int, ItemState]) -> None:
        taken = self.write(
            attempt, lambda s: record_prefix(s, attempt.lease, self.item_rows(attempt, rows))
        )
        assert taken == self.world.record_prefix(*key(attempt), rows)

    def record_stopped(self, attempt: Attempt, rows: Mapping[int, ItemState]) -> None:
        taken = self.write(
            attempt, lambda s: record_stopped(s, attempt.lease, self.item_rows(attempt, rows))
        )
        assert taken == self.world.record_stopped(*key(attempt), rows)

    def record_failure(self, attempt: Attempt) -> None:
        error = {"code": "x", "detail": "y"}
        taken = self.write(attempt, lambda s: record_failure(s, attempt.lease, error))
        assert taken == self.world.record_failure(*key(attempt))

    def narrow_failing(self, attempt: Attempt, delay: float) -> None:
        error = {"code": "x", "detail": "y"}
        taken = self.write(
            attempt,
            lambda s: narrow_failing_chunk(s, attempt.lease, error, delay_seconds=delay),
        )
        assert taken == self.world.narrow_failing(*key(attempt), delay)

    def cancel(self, job_id: str) -> None:
        assert self._told(cancel_job, job_id) == self.world.cancel(job_id)

    def pause(self, job_id: str) -> None:
        assert self._told(pause_job, job_id) == self.world.pause(job_id)

    def resume(self, job_id: str) -> None:
        assert self._told(resume_job, job_id) == self.world.resume(job_id)

    def sweep(self) -> None:
        swept = sweep_once(self.db, max_kills=MAX_KILLS)
        assert swept.freed == self.world.sweep()
        assert swept.repaired == 0
        # The recount of open jobs finds nothing to put right, wherever they stand.
        recounted = recount_jobs(self.db)
        assert (recounted.repaired, recounted.torn) == (0, 0)

    def relay(self) -> None:
        before = len(self.bells.waiting)
        rung = relay_once(
            self.db,
            self.bells.celery,
            ring_again_seconds=RING_AGAIN_SECONDS,
            alive_seconds=3 * RING_AGAIN_SECONDS,
        )
        assert rung == len(self.bells.waiting) - before
        order = list(self.world.chunks)
        self.bells.waiting[before:] = sorted(
            self.bells.waiting[before:], key=lambda bell: order.index(bell.chunk_id)
        )
        for bell in self.bells.waiting[before:]:
            chunk = self.world.chunks[bell.chunk_id]
            assert chunk.state == "pending", chunk
            assert chunk.task == bell.task

    def kill_worker(self, worker_id: str) -> None:
        """A worker is replaced by a new process of its name: its leases are void."""
        with self.db.system() as session:
            queue = session.execute(
                update(WorkerRow)
                .where(WorkerRow.id == worker_id)
                .values(gone_at=func.now())
                .returning(WorkerRow.queue)
            ).scalar_one()
        self.world.gone_workers.add(worker_id)
        self.workers.remove(worker_id)
        self._start_worker(Queue(queue))

    def _find_chunk(self, job_id: str, lo: int) -> str:
        with self.db.system() as session:
            found = session.scalars(
                select(Chunk.id).where(
                    Chunk.job_id == job_id,
                    Chunk.task == ChunkTask.PREDICT,
                    Chunk.first_item == lo,
                )
            ).all()
        assert len(found) == 1, f"{len(found)} chunks of {job_id} begin with item {lo}"
        return found[0]

    def _told(self, tell: Callable[[Session, str, str], Job], job_id: str) -> bool:
        """Whether the job takes what its client tells it."""
        tenant_id = self.world.jobs[job_id].tenant_id
        try:
            with self.db.tenant(tenant_id) as session:
                tell(session, tenant_id, job_id)
        except ConflictError:
            return False
        return True

    def _bind(self, job: Job, bounds: Bounds) -> None:
        if bounds.seconds is not None:
            moment = self.world.now + bounds.seconds
            job.deadline_at = datetime.fromtimestamp(moment, UTC)
        job.max_failed_items, job.max_failed_fraction = bounds.failed_items, bounds.failed_fraction

    def add_job(
        self,
        job_id: str,
        tenant_id: str,
        kind: JobKind,
        state: JobState,
        bounds: Bounds = UNBOUNDED,
    ) -> ModelJob:
        """Tell the model of a job that the database has."""
        job = ModelJob(job_id, tenant_id, kind, state)
        if bounds.seconds is not None:
            job.deadline_at = self.world.now + bounds.seconds
        job.max_failed_items, job.max_failed_fraction = bounds.failed_items, bounds.failed_fraction
        self.world.add_job(job)
        return job

    def _add_version(self, tenant_id: str) -> str:
        with self.db.tenant(tenant_id) as session:
            return add_version(session, tenant_id).id

    def _start_worker(self, queue: Queue) -> None:
        with self.db.system() as session:
            self.workers.append(add_worker(session, queue, slots=_SLOTS))

    def item_rows(self, attempt: Attempt, rows: Mapping[int, ItemState]) -> list[ItemRow]:
        """What the attempt records of its job's items."""
        return item_rows(self.world.jobs[attempt.lease.job_id], rows)

    def write(self, attempt: Attempt, write: Callable[[Session], object]) -> bool:
        """Whether the attempt still held its lease, and so what it writes is kept."""
        try:
            with self.db.tenant(attempt.lease.tenant_id) as session:
                write(session)
        except FencedError:
            return False
        return True


def key(attempt: Attempt) -> tuple[str, int]:
    """How the model knows the attempt."""
    return attempt.lease.chunk_id, attempt.lease.attempt
