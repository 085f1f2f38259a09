"""What the rules of jobs and chunks say must be true: no SQL, no threads, a clock of its own.

Every method is the meaning of one function of :mod:`app.jobs` or :mod:`app.dispatch`, one
transaction after another. What it returns is what that function must answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from app.jobs.claim import NARROW_AT
from app.jobs.states import (
    ChunkState,
    ChunkTask,
    ItemState,
    JobState,
    StopReason,
)
from tests.model.values import LEASE_SECONDS, MAX_KILLS, OPEN, ModelChunk, ModelJob

_GOING_ON = frozenset({JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED})


class World:
    """All jobs, and what each step does to them."""

    def __init__(self, now: float, find_chunk: Callable[[str, int], str]) -> None:
        self.now = now
        #: The id that the database gave to the chunk of a job that begins with an ordinal.
        self._find_chunk = find_chunk
        self.jobs: dict[str, ModelJob] = {}
        self.chunks: dict[str, ModelChunk] = {}
        self.gone_workers: set[str] = set()

    def add_job(self, job: ModelJob) -> None:
        """A job was submitted."""
        self.jobs[job.id] = job

    def add_chunk(
        self, job_id: str, chunk_id: str, task: ChunkTask, lo: int = 0, hi: int = 0
    ) -> None:
        """A chunk was cut."""
        chunk = ModelChunk(chunk_id, job_id, task, lo, hi, due_at=self.now)
        self.chunks[chunk_id] = chunk
        self.jobs[job_id].chunks.append(chunk)

    def job_of(self, chunk_id: str) -> ModelJob:
        """The job of a chunk."""
        return self.jobs[self.chunks[chunk_id].job_id]

    def open_jobs(self) -> Iterator[ModelJob]:
        """Jobs that have not ended."""
        return (job for job in self.jobs.values() if not job.ended)

    def holds(self, chunk_id: str, attempt: int) -> bool:
        """Whether this attempt may still write."""
        chunk = self.chunks[chunk_id]
        return chunk.state == ChunkState.RUNNING and chunk.attempt == attempt

    def claim(self, chunk_id: str, worker_id: str, *, alone: bool) -> bool:
        """Whether a worker that answers a bell for this chunk gets it; suspects only alone."""
        chunk, job = self.chunks[chunk_id], self.job_of(chunk_id)
        if (
            chunk.state != ChunkState.PENDING
            or chunk.due_at > self.now
            or not self._wants(job, chunk)
        ):
            return False
        if chunk.kills and not (alone and (chunk.kills < NARROW_AT or not chunk.size)):
            return False
        self._take(chunk, worker_id)
        return True

    def extend(self, chunk_id: str, attempt: int) -> JobState | None:
        """What a heartbeat learns."""
        if not self.holds(chunk_id, attempt):
            return None
        self.chunks[chunk_id].lease_until = self.now + LEASE_SECONDS
        return self.job_of(chunk_id).state

    def release(self, chunk_id: str, attempt: int, delay: float, *, failed: bool) -> bool:
        """Whether giving the chunk back had an effect."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk = self.chunks[chunk_id]
        chunk.faults += failed
        self._let_go(chunk, ChunkState.PENDING)
        chunk.due_at = self.now + delay
        return True

    def record(self, chunk_id: str, attempt: int, rows: Mapping[int, ItemState]) -> bool:
        """Whether the results of a whole chunk are taken."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk, job = self.chunks[chunk_id], self.job_of(chunk_id)
        self._let_go(chunk, ChunkState.DONE)
        self._add(job, rows, attempt)
        if job.state == JobState.CANCELLING:
            self._close_stopped(job)
        elif job.sealed and job.counted == job.total:
            failed = job.items(ItemState.FAILED)
            if job.total and failed == job.total:
                job.state = JobState.FAILED
            else:
                job.state = JobState.PARTIALLY_SUCCEEDED if failed else JobState.SUCCEEDED
        return True

    def record_prefix(self, chunk_id: str, attempt: int, rows: Mapping[int, ItemState]) -> bool:
        """Whether the first items are taken; the rest waits again."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk, job = self.chunks[chunk_id], self.job_of(chunk_id)
        chunk.lo += len(rows)
        if rows:
            chunk.kills = chunk.faults = 0
        self._let_go(chunk, ChunkState.PENDING)
        self._add(job, rows, attempt)
        return True

    def record_part(
        self,
        chunk_id: str,
        attempt: int,
        rows: Mapping[int, ItemState],
        *,
        added: int = 0,
        seal: bool = False,
    ) -> bool:
        """Whether a step of a resumable task is taken."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk, job = self.chunks[chunk_id], self.job_of(chunk_id)
        chunk.lease_until = self.now + LEASE_SECONDS
        if rows or added:
            chunk.kills = chunk.faults = 0
        job.total += added
        job.sealed = job.sealed or seal
        self._add(job, rows, attempt)
        return True

    def record_plan(self, chunk_id: str, attempt: int) -> bool:
        """Whether the plan is sealed."""
        if not self.holds(chunk_id, attempt):
            return False
        job = self.job_of(chunk_id)
        self._let_go(self.chunks[chunk_id], ChunkState.DONE)
        self._add(job, {}, attempt)
        job.sealed = True
        if job.state == JobState.CANCELLING:
            self._close_stopped(job)
        elif not job.total:
            self._fail(job)
        elif job.state == JobState.VALIDATING:
            job.state, job.was_queued = JobState.QUEUED, True
        return True

    def record_stopped(self, chunk_id: str, attempt: int, rows: Mapping[int, ItemState]) -> bool:
        """Whether the finished part of a stopped chunk is taken."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk, job = self.chunks[chunk_id], self.job_of(chunk_id)
        self._end_stopped(job, chunk, chunk.size - len(rows))
        self._add(job, rows, attempt)
        self._close_stopped(job)
        return True

    def record_failure(self, chunk_id: str, attempt: int) -> bool:
        """Whether the failure of the whole job is taken."""
        if not self.holds(chunk_id, attempt):
            return False
        self._fail(self.job_of(chunk_id))
        return True

    def narrow_failing(self, chunk_id: str, attempt: int, delay: float) -> bool:
        """Whether a chunk whose work failed is cut in two, or its only item failed."""
        if not self.holds(chunk_id, attempt):
            return False
        chunk = self.chunks[chunk_id]
        if chunk.size == 1:
            return self.record(chunk_id, attempt, {chunk.lo: ItemState.FAILED})
        self._let_go(chunk, ChunkState.PENDING)
        self._halve(chunk, self.now + delay, faults=1)
        return True

    def pause(self, job_id: str) -> bool:
        """Whether the job is paused now."""
        job = self.jobs[job_id]
        if job.state in _GOING_ON:
            job.state = JobState.PAUSED
        return job.state == JobState.PAUSED

    def resume(self, job_id: str) -> bool:
        """Whether the job goes on now."""
        job = self.jobs[job_id]
        if job.state == JobState.PAUSED:
            if job.was_running:
                job.state = JobState.RUNNING
            elif job.was_queued or job.sealed:
                job.state, job.was_queued = JobState.QUEUED, True
            else:
                job.state = JobState.VALIDATING
        return job.state in _GOING_ON

    def cancel(self, job_id: str) -> bool:
        """Whether the job can be cancelled, or was."""
        job = self.jobs[job_id]
        self._stop(job, StopReason.CANCEL)
        return job.state in (JobState.CANCELLING, JobState.CANCELLED)

    def sweep(self) -> int:
        """How many leases a sweep frees; it narrows, fails and ends what is due for it too."""
        ended = [chunk for chunk in self.chunks.values() if self._lease_ended(chunk)]
        for chunk in ended:
            self._let_go(chunk, ChunkState.PENDING)
            chunk.kills += 1
            chunk.due_at = self.now
        for chunk in list(self.chunks.values()):
            if chunk.state == ChunkState.PENDING and chunk.kills >= NARROW_AT and chunk.size:
                self._narrow_killed(chunk)
        for chunk in self.chunks.values():
            if chunk.state == ChunkState.PENDING and chunk.kills >= MAX_KILLS and not chunk.size:
                self._fail(self.jobs[chunk.job_id])
        for job in self.jobs.values():
            if job.deadline_at is not None and job.deadline_at <= self.now:
                self._stop(job, StopReason.DEADLINE)
            if job.state == JobState.CANCELLING:
                for chunk in job.chunks:
                    if chunk.state == ChunkState.PENDING:
                        self._end_stopped(job, chunk, chunk.size)
                self._close_stopped(job)
        return len(ended)

    def _narrow_killed(self, chunk: ModelChunk) -> None:
        if chunk.size > 1:
            self._halve(chunk, self.now, kills=1)
        elif chunk.due_at <= self.now and self._wants(self.jobs[chunk.job_id], chunk):
            self._take(chunk, "the sweeper")
            self.record(chunk.id, chunk.attempt, {chunk.lo: ItemState.FAILED})

    def _halve(self, chunk: ModelChunk, due_at: float, *, kills: int = 0, faults: int = 0) -> None:
        middle, hi = chunk.lo + (chunk.size + 1) // 2, chunk.hi
        chunk.hi = middle
        other = self._find_chunk(chunk.job_id, middle)
        self.add_chunk(chunk.job_id, other, chunk.task, middle, hi)
        for half in (chunk, self.chunks[other]):
            half.kills, half.faults, half.due_at = kills, faults, due_at

    def _take(self, chunk: ModelChunk, worker_id: str) -> None:
        chunk.state, chunk.attempt = ChunkState.RUNNING, chunk.attempt + 1
        chunk.lease_until, chunk.worker_id = self.now + LEASE_SECONDS, worker_id
        job = self.jobs[chunk.job_id]
        if job.state == JobState.QUEUED:
            job.state, job.was_running = JobState.RUNNING, True

    def _wants(self, job: ModelJob, chunk: ModelChunk) -> bool:
        if job.deadline_at is not None and job.deadline_at <= self.now:
            return False
        if chunk.task == ChunkTask.PLAN:
            return job.state == JobState.VALIDATING
        return job.state in (JobState.QUEUED, JobState.RUNNING)

    def _stop(self, job: ModelJob, reason: StopReason) -> None:
        if job.state in _GOING_ON:
            job.state, job.reason = JobState.CANCELLING, reason

    def _lease_ended(self, chunk: ModelChunk) -> bool:
        if chunk.state != ChunkState.RUNNING:
            return False
        assert chunk.lease_until is not None
        return chunk.lease_until < self.now or chunk.worker_id in self.gone_workers

    def _let_go(self, chunk: ModelChunk, to: ChunkState) -> None:
        chunk.state, chunk.lease_until, chunk.worker_id = to, None, None

    def _add(self, job: ModelJob, rows: Mapping[int, ItemState], attempt: int) -> None:
        twice = job.rows.keys() & rows.keys()
        assert not twice, f"the test itself records {sorted(twice)} twice"
        job.rows |= {ordinal: (state, attempt) for ordinal, state in rows.items()}
        job.seq += 1
        if ItemState.FAILED in rows.values() and self._too_many_failed(job):
            self._stop(job, StopReason.FAILURES)

    def _too_many_failed(self, job: ModelJob) -> bool:
        failed = job.items(ItemState.FAILED)
        if job.max_failed_items is not None and failed > job.max_failed_items:
            return True
        # A fraction of what is not counted yet would be none.
        limit = job.max_failed_fraction
        return limit is not None and job.sealed and failed / job.total > limit

    def _end_stopped(self, job: ModelJob, chunk: ModelChunk, left: int) -> None:
        if job.reason == StopReason.DEADLINE:
            self._let_go(chunk, ChunkState.EXPIRED)
            job.expired += left
        else:
            self._let_go(chunk, ChunkState.CANCELLED)
            job.cancelled += left

    def _close_stopped(self, job: ModelJob) -> None:
        if any(chunk.state in OPEN for chunk in job.chunks):
            return
        left = job.total - job.counted
        if job.reason == StopReason.DEADLINE:
            job.state, job.expired = JobState.EXPIRED, job.expired + left
        else:
            failures = job.reason == StopReason.FAILURES
            job.state = JobState.FAILED if failures else JobState.CANCELLED
            job.cancelled += left
        job.sealed = True

    def _fail(self, job: ModelJob) -> None:
        for chunk in job.chunks:
            if chunk.state in OPEN:
                self._let_go(chunk, ChunkState.CANCELLED)
        # A job that was told to stop ends as its reason says, with the next sweep.
        if job.state in _GOING_ON:
            job.cancelled += job.total - job.counted
            job.state, job.sealed = JobState.FAILED, True
