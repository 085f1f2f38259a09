"""The rules of jobs and chunks in any order, on real PostgreSQL under a fake clock."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import func
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.dispatch import stops, sweep
from app.jobs import claim, finalize, pause, record, retried
from app.jobs.claim import Lease
from app.jobs.move import move_job
from app.jobs.states import JobKind, JobState
from app.stack.postgres import LocalPostgres
from tests.model.clock import TimedDatabase
from tests.model.drive import Driver
from tests.model.look import check
from tests.model.play import play
from tests.model.reading import plan_done, plan_more
from tests.model.retry import plan_retry, retry
from tests.model.values import LEASE_SECONDS, UNBOUNDED, Attempt, Bounds, rows_for

#: Half a minute; `make fuzz` plays thousands.
EXAMPLES = 30
#: The same games on every run of the CI, others each time elsewhere.
NUMBER = 1 if os.environ.get("CI", "").lower() == "true" else None

Game = Callable[[Driver], None]


@pytest.fixture(scope="module")
def timed(postgres: LocalPostgres) -> Iterator[TimedDatabase]:
    """A database under a clock of its own."""
    timed = TimedDatabase(postgres, "timed")
    yield timed
    timed.close()


def test_tables_and_model_agree_whatever_happens_in_whatever_order(timed: TimedDatabase) -> None:
    play(timed, examples=EXAMPLES, number=NUMBER)


def test_time_passes_only_when_it_is_told_to(timed: TimedDatabase) -> None:
    driver = Driver(timed)
    before = timed.now()
    held = submit_and_claim(driver)
    driver.sweep()
    assert timed.now() == before
    driver.advance(LEASE_SECONDS + 1)
    driver.sweep()
    driver.beat(held, extend=True)
    assert held.told is None
    assert timed.now() == before + LEASE_SECONDS + 1


def submit_and_claim(
    driver: Driver, *sizes: int, bounds: Bounds = UNBOUNDED, kind: JobKind | None = None
) -> Attempt:
    """The attempt at the first chunk of a new job; every game begins so."""
    if kind is not None:
        driver.submit_unread(driver.tenants[0], kind, bounds)
    else:
        driver.submit(driver.tenants[0], sizes or (3, 2), bounds)
    return claim_next(driver)


def claim_next(driver: Driver) -> Attempt:
    for chunk in driver.world.chunks.values():
        attempt = driver.claim(chunk.id, chunk.task, driver.workers[0])
        if attempt is not None:
            return attempt
    raise AssertionError("no chunk can be claimed")


def finish(driver: Driver, attempt: Attempt, failing: int = 0) -> None:
    driver.record(attempt, rows_for(range(attempt.lease.lo, attempt.lease.hi), failing))


def a_worker_comes_back_too_late(driver: Driver) -> None:
    late = submit_and_claim(driver)
    driver.advance(LEASE_SECONDS + 1)
    driver.sweep()
    claim_next(driver)
    finish(driver, late)


def two_chunks_are_recorded(driver: Driver) -> None:
    for attempt in (submit_and_claim(driver), claim_next(driver)):
        finish(driver, attempt)


def one_of_two_workers_lets_go(driver: Driver) -> None:
    first, _ = submit_and_claim(driver), claim_next(driver)
    driver.cancel(first.lease.job_id)
    driver.beat(first, extend=False)
    driver.record_stopped(first, {})


def a_worker_dies(driver: Driver) -> None:
    held = submit_and_claim(driver)
    driver.kill_worker(driver.workers[0])
    driver.sweep()
    check(driver.timed, driver.world)
    driver.beat(held, extend=True)


def a_waiting_job_is_cancelled(driver: Driver) -> None:
    driver.submit(driver.tenants[0], (3,))
    driver.cancel(next(iter(driver.world.jobs)))
    driver.sweep()


def a_job_fails(driver: Driver) -> None:
    driver.record_failure(submit_and_claim(driver))


def too_many_items_fail(driver: Driver) -> None:
    finish(driver, submit_and_claim(driver, bounds=Bounds(failed_items=0)), failing=1)


def a_deadline_passes(driver: Driver) -> None:
    held = submit_and_claim(driver, bounds=Bounds(seconds=20))
    driver.advance(21)
    driver.sweep()
    driver.beat(held, extend=True)


def a_plan_is_paused_and_resumed(driver: Driver) -> None:
    plan = submit_and_claim(driver, kind=JobKind.PREDICT)
    driver.pause(plan.lease.job_id)
    check(driver.timed, driver.world)
    plan_more(driver, plan, (2, 2))
    plan_done(driver, plan)
    driver.resume(plan.lease.job_id)
    finish(driver, claim_next(driver))


def an_item_kills_its_workers(driver: Driver) -> None:
    submit_and_claim(driver, 2)
    for _ in range(3):
        driver.advance(LEASE_SECONDS + 1)
        driver.sweep()
        check(driver.timed, driver.world)
        claim_next(driver)


def what_failed_is_retried(driver: Driver) -> None:
    held = submit_and_claim(driver)
    finish(driver, held, failing=2)
    driver.cancel(held.lease.job_id)
    driver.sweep()
    retry(driver, held.lease.job_id, "failed")
    plan_retry(driver, claim_next(driver))
    check(driver.timed, driver.world)
    finish(driver, claim_next(driver))


GAMES: list[Game] = [
    a_worker_comes_back_too_late,
    two_chunks_are_recorded,
    one_of_two_workers_lets_go,
    a_worker_dies,
    a_waiting_job_is_cancelled,
    a_job_fails,
    too_many_items_fail,
    a_deadline_passes,
    a_plan_is_paused_and_resumed,
    an_item_kills_its_workers,
    what_failed_is_retried,
]


@pytest.mark.parametrize("game", GAMES)
def test_game_agrees_where_no_rule_is_broken(timed: TimedDatabase, game: Game) -> None:
    play_out(Driver(timed), game)


def play_out(driver: Driver, game: Game) -> None:
    game(driver)
    check(driver.timed, driver.world)


_holds = claim.holds


def _whatever_the_attempt(lease: Lease) -> list[Any]:
    return [guard for guard in _holds(lease) if "attempt" not in str(guard)]


def _cancelled_at_once(session: Session, tenant_id: str, job_id: str) -> bool:
    return move_job(session, tenant_id, job_id, JobState.CANCELLED)


def _no_rest(counter: str) -> dict[str, Any]:
    return {"sealed_at": func.now()}


@pytest.mark.parametrize(
    ("module", "name", "broken", "game"),
    [
        (claim, "holds", _whatever_the_attempt, a_worker_comes_back_too_late),
        (record, "close_job", lambda *_: None, two_chunks_are_recorded),
        (record, "close_stopped_if_let_go", _cancelled_at_once, one_of_two_workers_lets_go),
        (sweep, "free_ended_leases", lambda _: 0, a_worker_dies),
        (stops, "close_stopped_if_let_go", lambda *_: False, a_waiting_job_is_cancelled),
        (finalize, "_rest_is", _no_rest, a_job_fails),
        (record, "exceeds_budget", lambda *_: False, too_many_items_fail),
        (sweep, "stop_overdue_jobs", lambda _: 0, a_deadline_passes),
        (pause, "move_job", lambda *_, **__: False, a_plan_is_paused_and_resumed),
        (sweep, "narrow_poisoned", lambda _: Counter(), an_item_kills_its_workers),
        (retried, "takes", lambda _which, state: state != "succeeded", what_failed_is_retried),
    ],
)
def test_game_shows_a_broken_rule(
    timed: TimedDatabase,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    broken: Callable[..., Any],
    game: Game,
) -> None:
    driver = Driver(timed)
    monkeypatch.setattr(module, name, broken)
    with pytest.raises((AssertionError, DBAPIError)):
        play_out(driver, game)


def test_play_finds_a_broken_rule_by_itself(
    timed: TimedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "free_ended_leases", lambda _: 0)
    with pytest.raises(AssertionError):
        play(timed, examples=300, number=1, shrink=False)
