"""Chunks that hold their slot to the end: only so many are chosen, and nobody loses a turn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.dispatch.turns import QUANTUM, JobTurn, TenantTurn, Waiting, take_turns

START = datetime(2026, 1, 1, tzinfo=UTC)


def tenant(name: str, *jobs: JobTurn) -> TenantTurn:
    return TenantTurn(name, START, jobs=list(jobs))


def job(name: str, minute: int, *, holds_slot: bool = False) -> JobTurn:
    chunks = iter([Waiting(name, QUANTUM, holds_slot)])
    return JobTurn(name, START + timedelta(minutes=minute), chunks=chunks)


def test_no_more_are_chosen_than_may_hold_their_slot_and_others_go_before_them() -> None:
    jobs = [job(f"export {number}", number, holds_slot=True) for number in range(3)]
    jobs.append(job("plan", 3))
    chosen = take_turns([tenant("a", *jobs)], 4, START, most_holding=2)
    assert chosen == ["export 0", "export 1", "plan"]


def test_job_that_is_passed_over_keeps_its_place() -> None:
    export = job("export", 0, holds_slot=True)
    owner = tenant("a", export)
    assert take_turns([owner], 2, START, most_holding=0) == []
    assert not export.changed
    assert not owner.changed
    # With the others of the next round it is the first again.
    assert take_turns([tenant("a", job("plan", 1), export)], 2, START) == ["export", "plan"]


def test_limit_is_one_for_all_tenants() -> None:
    tenants = [tenant(name, job(f"of {name}", 0, holds_slot=True)) for name in "abc"]
    assert take_turns(tenants, 3, START, most_holding=2) == ["of a", "of b"]
