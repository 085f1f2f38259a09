"""The quiet after a game: the service goes on alone, and every job must end."""

from __future__ import annotations

from app.jobs.states import ChunkTask
from tests.model.drive import RING_AGAIN_SECONDS, Driver
from tests.model.look import check
from tests.model.reading import ingest, plan_done
from tests.model.retry import plan_retry
from tests.model.values import OPEN, Attempt, rows_for

#: Rounds of work until everything must have ended; a lease and the longest delay are over in 14.
_ROUNDS = 40


def work_to_the_end(driver: Driver) -> None:
    """Time passes, bells are rung and answered, and each chunk is done well."""
    for _ in range(_ROUNDS):
        if not any(True for _ in driver.world.open_jobs()):
            break
        _work_on(driver)
    check(driver.timed, driver.world)
    left = [(job.state, job.chunks) for job in driver.world.open_jobs()]
    assert not left, f"these never end: {left}"
    assert not any(chunk.state in OPEN for chunk in driver.world.chunks.values())


def _work_on(driver: Driver) -> None:
    driver.advance(RING_AGAIN_SECONDS + 1)
    driver.sweep()
    driver.relay()
    bells, driver.bells.waiting = driver.bells.waiting, []
    for bell in bells:
        attempt = driver.answer(bell, driver.workers[0])
        if attempt is not None:
            _finish(driver, attempt)


def _finish(driver: Driver, attempt: Attempt) -> None:
    lease = attempt.lease
    match lease.task:
        case ChunkTask.PLAN if driver.is_retry(attempt):
            plan_retry(driver, attempt)
        case ChunkTask.PLAN:
            plan_done(driver, attempt)
        case ChunkTask.INGEST:
            ingest(driver, attempt, 3, 0)
            if driver.holds(attempt):
                total = driver.world.jobs[lease.job_id].total
                ingest(driver, attempt, total - attempt.position, 0)
        case _:
            driver.record(attempt, rows_for(range(lease.lo, lease.hi), 0))
