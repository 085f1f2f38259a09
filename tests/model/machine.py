"""Hypothesis plays clients, workers, dispatchers and time, in any order, against the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar, get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.jobs.retried import Which
from app.jobs.states import ChunkState, ChunkTask, ItemState, JobKind, JobState
from tests.model.clock import TimedDatabase
from tests.model.drive import Driver
from tests.model.look import check
from tests.model.quiet import work_to_the_end
from tests.model.reading import ingest, plan_done, plan_more
from tests.model.retry import plan_retry, refusal, retry
from tests.model.values import LEASE_SECONDS, UNBOUNDED, Attempt, Bounds, rows_for

T = TypeVar("T")

MOST_JOBS = 4
MOST_WITH_RETRIES = 7

_pick = st.integers(0, 31)
_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=3)
_failing = st.sampled_from([0, 0, 1, 3])
_DELAYS = st.sampled_from([0.0, 2.0, 60.0])
_SECONDS = st.sampled_from([1.0, 6.0, 20.0, 31.0, 65.0])


_WHICH = st.sampled_from(get_args(Which))
_UNREAD = st.sampled_from([JobKind.PREDICT, JobKind.INGEST])
_BOUNDS = st.sampled_from(
    [UNBOUNDED] * 4
    + [Bounds(seconds=50), Bounds(failed_items=0), Bounds(failed_items=2)]
    + [Bounds(failed_fraction=0.25), Bounds(seconds=90, failed_items=1, failed_fraction=0.5)]
)


class JobMachine(RuleBasedStateMachine):
    """Rules that make one transaction each; after each, tables and model must be the same."""

    timed: TimedDatabase
    #: Counted over all runs of this process.
    examples = 0
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        JobMachine.examples += 1
        self.driver = Driver(self.timed)
        self.world = self.driver.world

    @precondition(lambda self: len(self.world.jobs) < MOST_JOBS)
    @rule(tenant=st.integers(0, 1), sizes=_sizes, bounds=_BOUNDS)
    def submit(self, tenant: int, sizes: list[int], bounds: Bounds) -> None:
        self.driver.submit(self.driver.tenants[tenant], sizes, bounds)

    @precondition(lambda self: len(self.world.jobs) < MOST_JOBS)
    @rule(tenant=st.integers(0, 1), kind=_UNREAD, bounds=_BOUNDS)
    def submit_unread(self, tenant: int, kind: JobKind, bounds: Bounds) -> None:
        self.driver.submit_unread(self.driver.tenants[tenant], kind, bounds)

    @precondition(lambda self: 0 < len(self.world.jobs) < MOST_WITH_RETRIES)
    @rule(pick=_pick, which=_WHICH, planned=st.booleans())
    def retry(self, pick: int, which: Which, planned: bool) -> None:
        jobs = list(self.world.jobs.values())
        jobs += 4 * [job for job in jobs if refusal(job, which) is None]
        self.retry_job(_choose(jobs, pick).id, which, planned=planned)

    @precondition(lambda self: 0 < len(self.world.jobs) < MOST_WITH_RETRIES)
    @rule(pick=_pick, which=_WHICH, planned=st.booleans())
    def retry_what_was_cancelled(self, pick: int, which: Which, planned: bool) -> None:
        job_id = _choose(list(self.world.jobs), pick)
        self.driver.cancel(job_id)
        self.driver.sweep()
        self.retry_job(job_id, which, planned=planned)

    @precondition(lambda self: self.world.jobs)
    @rule()
    def relay(self) -> None:
        self.driver.relay()

    @precondition(lambda self: self.driver.bells.waiting)
    @rule(pick=_pick, worker=_pick, twice=st.booleans())
    def answer_bell(self, pick: int, worker: int, twice: bool) -> None:
        bell = _choose(self.driver.bells.waiting, pick)
        if not twice:
            self.driver.bells.waiting.remove(bell)
        self.driver.answer(bell, _choose(self.driver.workers, worker))

    @precondition(lambda self: self.driver.bells.waiting)
    @rule()
    def flush_redis(self) -> None:
        self.driver.bells.waiting.clear()

    @precondition(lambda self: self.world.chunks)
    @rule(pick=_pick, worker=_pick, alone=st.booleans())
    def answer_bell_that_nobody_rang(self, pick: int, worker: int, alone: bool) -> None:
        chunk = _choose(list(self.world.chunks.values()), pick)
        self.driver.claim(chunk.id, chunk.task, _choose(self.driver.workers, worker), alone=alone)

    @precondition(lambda self: self.world.chunks)
    @rule(pick=_pick, task=st.sampled_from(ChunkTask))
    def answer_forged_bell(self, pick: int, task: ChunkTask) -> None:
        chunk = _choose(list(self.world.chunks.values()), pick)
        if task != chunk.task:
            assert self.driver.claim(chunk.id, task, self.driver.workers[0]) is None

    @precondition(lambda self: self.at_work())
    @rule(pick=_pick, worker=_pick)
    def take_over_from_one_that_hangs(self, pick: int, worker: int) -> None:
        lease = _choose(self.at_work(), pick).lease
        self.driver.advance(LEASE_SECONDS + 1)
        self.driver.sweep()
        self.driver.claim(lease.chunk_id, lease.task, _choose(self.driver.workers, worker))

    @precondition(lambda self: self.driver.attempts)
    @rule(pick=_pick, extend=st.booleans())
    def beat(self, pick: int, extend: bool) -> None:
        self.driver.beat(self.attempt(pick), extend=extend)

    @precondition(lambda self: self.driver.attempts)
    @rule(pick=_pick, delay=_DELAYS, failed=st.booleans())
    def release(self, pick: int, delay: float, failed: bool) -> None:
        self.driver.release(self.attempt(pick), delay, failed=failed)

    @precondition(lambda self: self.attempts_at(ChunkTask.PREDICT))
    @rule(pick=_pick, failing=_failing)
    def record(self, pick: int, failing: int) -> None:
        attempt = _choose(self.attempts_at(ChunkTask.PREDICT), pick)
        self.driver.record(attempt, _rows(attempt, attempt.lease.hi, failing))

    @precondition(lambda self: self.attempts_at(ChunkTask.PREDICT))
    @rule(pick=_pick, size=st.integers(0, 3), failing=_failing)
    def record_prefix(self, pick: int, size: int, failing: int) -> None:
        attempt = _choose(self.attempts_at(ChunkTask.PREDICT), pick)
        hi = min(attempt.lease.lo + size, attempt.lease.hi - 1)
        self.driver.record_prefix(attempt, _rows(attempt, hi, failing))

    @precondition(lambda self: self.stoppable())
    @rule(pick=_pick, size=st.integers(0, 4), failing=_failing)
    def record_stopped(self, pick: int, size: int, failing: int) -> None:
        attempt = _choose(self.stoppable(), pick)
        if attempt.told != JobState.CANCELLING:
            self.driver.beat(attempt, extend=False)
        hi = min(attempt.lease.lo + size, attempt.lease.hi)
        self.driver.record_stopped(attempt, _rows(attempt, hi, failing))

    @precondition(lambda self: self.driver.attempts)
    @rule(pick=_pick)
    def record_failure(self, pick: int) -> None:
        self.driver.record_failure(self.attempt(pick))

    @precondition(lambda self: self.attempts_at(ChunkTask.PREDICT))
    @rule(pick=_pick, delay=_DELAYS)
    def narrow_failing(self, pick: int, delay: float) -> None:
        self.driver.narrow_failing(_choose(self.attempts_at(ChunkTask.PREDICT), pick), delay)

    @precondition(lambda self: self.plans(of_retries=False))
    @rule(pick=_pick, sizes=_sizes)
    def plan_more(self, pick: int, sizes: list[int]) -> None:
        plan_more(self.driver, _choose(self.plans(of_retries=False), pick), sizes)

    @precondition(lambda self: self.plans(of_retries=False))
    @rule(pick=_pick)
    def plan_done(self, pick: int) -> None:
        plan_done(self.driver, _choose(self.plans(of_retries=False), pick))

    @precondition(lambda self: self.plans(of_retries=True))
    @rule(pick=_pick)
    def plan_retry(self, pick: int) -> None:
        plan_retry(self.driver, _choose(self.plans(of_retries=True), pick))

    @precondition(lambda self: self.attempts_at(ChunkTask.INGEST))
    @rule(pick=_pick, count=st.integers(1, 5), failing=_failing)
    def ingest_more(self, pick: int, count: int, failing: int) -> None:
        attempt = _choose(self.attempts_at(ChunkTask.INGEST), pick)
        ingest(self.driver, attempt, count, failing)

    @precondition(lambda self: self.world.jobs)
    @rule(pick=_pick)
    def cancel(self, pick: int) -> None:
        self.driver.cancel(_choose(list(self.world.jobs), pick))

    @precondition(lambda self: self.world.jobs)
    @rule(pick=_pick)
    def pause(self, pick: int) -> None:
        self.driver.pause(_choose(list(self.world.jobs), pick))

    @precondition(lambda self: self.world.jobs)
    @rule(pick=_pick)
    def resume(self, pick: int) -> None:
        self.driver.resume(_choose(list(self.world.jobs), pick))

    @rule()
    def sweep(self) -> None:
        self.driver.sweep()

    @rule(seconds=_SECONDS)
    def advance(self, seconds: float) -> None:
        self.driver.advance(seconds)

    @rule(pick=_pick)
    def replace_worker(self, pick: int) -> None:
        self.driver.kill_worker(_choose(self.driver.workers, pick))

    @invariant()
    def agree(self) -> None:
        check(self.timed, self.world)
        JobMachine.steps += 1

    def teardown(self) -> None:
        """Clients resume what they paused, the service goes on alone: then every job must end.

        And so must the retries of all that did not end well.
        """
        if sys.exc_info()[0] is not None:
            return
        for job_id in self.world.jobs:
            self.driver.resume(job_id)
        work_to_the_end(self.driver)
        for job_id in list(self.world.jobs):
            retry(self.driver, job_id, "all")
        work_to_the_end(self.driver)

    def retry_job(self, job_id: str, which: Which, *, planned: bool) -> None:
        """Retry a job; ``planned`` at once, so that its chunks meet what comes next."""
        plan_id = retry(self.driver, job_id, which)
        if plan_id is not None and planned:
            attempt = self.driver.claim(plan_id, ChunkTask.PLAN, self.driver.workers[0])
            assert attempt is not None
            plan_retry(self.driver, attempt)

    def attempt(self, pick: int) -> Attempt:
        return _choose(self.driver.attempts, pick)

    def attempts_at(self, task: ChunkTask) -> list[Attempt]:
        """Attempts at chunks of the task; those whose chunk is still worked on stand thrice."""
        found = [one for one in self.driver.attempts if one.lease.task == task]
        return found + 2 * [
            one
            for one in found
            if self.world.chunks[one.lease.chunk_id].state == ChunkState.RUNNING
        ]

    def plans(self, *, of_retries: bool) -> list[Attempt]:
        """Attempts at plans: a retry's reads what another job left."""
        found = self.attempts_at(ChunkTask.PLAN)
        return [one for one in found if self.driver.is_retry(one) == of_retries]

    def stoppable(self) -> list[Attempt]:
        """Attempts that were told to stop, or will be when they look."""
        return [
            one
            for one in self.driver.attempts
            if one.told == JobState.CANCELLING
            or (
                self.driver.holds(one)
                and self.world.jobs[one.lease.job_id].state == JobState.CANCELLING
            )
        ]

    def will_be_told(self, attempt: Attempt) -> bool:
        job = self.world.jobs[attempt.lease.job_id]
        return self.driver.holds(attempt) and job.state == JobState.CANCELLING

    def at_work(self) -> list[Attempt]:
        return [one for one in self.driver.attempts if self.driver.holds(one)]


def _choose(things: Sequence[T], pick: int) -> T:
    """Small numbers choose the latest, which is where things happen."""
    return things[-1 - pick % len(things)]


def _rows(attempt: Attempt, hi: int, failing: int) -> dict[int, ItemState]:
    return rows_for(range(attempt.lease.lo, hi), failing)
