"""Deficit round robin: who is served next, by time and not by number of chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.turns import (
    QUANTUM,
    STEP,
    JobTurn,
    TenantTurn,
    Turn,
    Waiting,
    cost_of,
    take_turns,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
COSTS = st.integers(100, QUANTUM)


class Round:
    """Relay rounds over chunks in memory; turns go through what the database would keep."""

    def __init__(self) -> None:
        self.queues: dict[str, dict[str, list[Waiting]]] = {}
        self.priorities: dict[str, int] = {}
        self.arrived: dict[str, datetime] = {}
        self.kept: dict[tuple[str, str], tuple[datetime, int]] = {}
        self.now = START
        self.number = 0

    def add(self, tenant: str, job: str, *costs: int, priority: int = 0) -> None:
        """Let chunks of these costs wait; their ids say whose they are."""
        queue = self.queues.setdefault(tenant, {}).setdefault(job, [])
        self.priorities[job] = priority
        self.arrived.setdefault(job, self.now)
        for cost in costs:
            self.number += 1
            queue.append(Waiting(f"{tenant}/{job}/{self.number}/{cost}", cost))

    def serve(self, wanted: int, seconds: float = 1) -> list[str]:
        """One round, so many seconds after the last; the chunks taken."""
        self.now += timedelta(seconds=seconds)
        tenants = [self._tenant(tenant) for tenant in self.queues]
        chosen = take_turns(tenants, wanted, self.now)
        for tenant in tenants:
            for turn in (tenant, *tenant.jobs):
                if turn.changed:
                    at = (tenant.id, "" if turn is tenant else turn.id)
                    self.kept[at] = (turn.since, turn.deficit)
        for jobs in self.queues.values():
            for job, queue in jobs.items():
                jobs[job] = [chunk for chunk in queue if chunk.id not in chosen]
        return chosen

    def _tenant(self, tenant: str) -> TenantTurn:
        since, deficit = self.kept.get((tenant, ""), (datetime.min.replace(tzinfo=UTC), QUANTUM))
        jobs = [self._job(tenant, job) for job in self.queues[tenant]]
        return TenantTurn(tenant, since, deficit, jobs=jobs)

    def _job(self, tenant: str, job: str) -> JobTurn:
        since, deficit = self.kept.get((tenant, job), (self.arrived[job] - STEP, QUANTUM))
        chunks: Iterator[Waiting] = iter(list(self.queues[tenant][job]))
        return JobTurn(job, since, deficit, chunks=chunks, priority=self.priorities[job])


def service(chosen: list[str], depth: int = 1) -> Counter[str]:
    """Cost that each tenant (or with depth 2 each job) was served."""
    served: Counter[str] = Counter()
    for chunk in chosen:
        served["/".join(chunk.split("/")[:depth])] += int(chunk.rsplit("/", 1)[1])
    return served


def owners(chosen: list[str], depth: int = 1) -> list[str]:
    return ["/".join(chunk.split("/")[:depth]) for chunk in chosen]


def test_a_chunk_costs_the_time_it_is_expected_to_take() -> None:
    assert cost_of(256, 256) == QUANTUM
    assert cost_of(128, 256) == QUANTUM // 2
    assert cost_of(64, 4096) == cost_of(1, 4096) == 100
    assert cost_of(9000, 256) == QUANTUM
    # A plan, an ingest, an export, a fine-tune.
    assert cost_of(0, 256) == QUANTUM


@pytest.mark.parametrize("wanted", [1, 2, 7])
def test_tenants_with_one_slot_take_turns_however_many_rounds_it_takes(wanted: int) -> None:
    rounds = Round()
    for tenant in "abc":
        rounds.add(tenant, f"job {tenant}", *[QUANTUM] * 20)
    chosen = [chunk for _ in range(21 // wanted) for chunk in rounds.serve(wanted)]
    assert owners(chosen) == list("abc" * 7)[: len(chosen)]
    assert len(chosen) >= 20


def test_jobs_of_one_tenant_take_turns_and_share_one_turn_of_their_tenant() -> None:
    rounds = Round()
    for number in range(9):
        rounds.add("many", f"job {number}", *[QUANTUM] * 5)
    rounds.add("one", "job", *[QUANTUM] * 50)
    chosen = [chunk for _ in range(18) for chunk in rounds.serve(1)]
    assert service(chosen) == {"many": 9 * QUANTUM, "one": 9 * QUANTUM}
    assert set(service(chosen, depth=2).values()) == {QUANTUM, 9 * QUANTUM}


def test_small_chunks_are_not_charged_like_full_ones() -> None:
    rounds = Round()
    rounds.add("small", "job", *[QUANTUM // 4] * 40)
    rounds.add("full", "job", *[QUANTUM] * 40)
    chosen = [chunk for _ in range(25) for chunk in rounds.serve(1)]
    assert Counter(owners(chosen)) == {"small": 20, "full": 5}


def test_new_job_comes_before_those_of_its_tenant_that_have_had_a_turn() -> None:
    rounds = Round()
    rounds.add("a", "huge", *[QUANTUM] * 100)
    rounds.serve(4)
    rounds.add("a", "small", 100)
    assert owners(rounds.serve(1), depth=2) == ["a/small"]


def test_stream_of_new_jobs_does_not_starve_an_old_one() -> None:
    rounds = Round()
    rounds.add("a", "huge", *[QUANTUM] * 100)
    rounds.serve(1)
    turns = []
    for number in range(300):
        rounds.add("a", f"new {number}", QUANTUM)
        turns += owners(rounds.serve(1), depth=2)
    assert turns.count("a/huge") >= 4


def test_priority_comes_first_and_yet_starves_nobody() -> None:
    rounds = Round()
    rounds.add("a", "patient", *[QUANTUM] * 1000)
    rounds.add("a", "urgent", *[QUANTUM] * 1000, priority=2)
    turns = [owner for _ in range(1000) for owner in owners(rounds.serve(1), depth=2)]
    assert turns[:50] == ["a/urgent"] * 50
    # Two steps of priority are worth two minutes of waiting: so often the other one has a turn.
    assert 8 <= turns.count("a/patient") <= 9


def test_priority_gains_nothing_over_other_tenants() -> None:
    rounds = Round()
    rounds.add("loud", "job", *[QUANTUM] * 50, priority=100)
    rounds.add("calm", "job", *[QUANTUM] * 50, priority=-100)
    chosen = [chunk for _ in range(40) for chunk in rounds.serve(1)]
    assert service(chosen) == {"loud": 20 * QUANTUM, "calm": 20 * QUANTUM}


def test_who_runs_empty_keeps_nothing() -> None:
    rounds = Round()
    rounds.add("a", "job", 100)
    rounds.serve(5)
    assert rounds.kept["a", ""][1] == rounds.kept["a", "job"][1] == QUANTUM


def test_nothing_waits_and_nothing_is_wanted() -> None:
    rounds = Round()
    assert rounds.serve(3) == []
    rounds.add("a", "job", 100)
    assert rounds.serve(0) == []
    assert not Turn("a", START).changed


@given(
    first=st.lists(COSTS, min_size=60, max_size=60),
    second=st.lists(COSTS, min_size=60, max_size=60),
    rounds_wanted=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_service_of_two_backlogged_tenants_differs_by_at_most_three_quanta_over_any_window(
    first: list[int], second: list[int], rounds_wanted: list[int]
) -> None:
    rounds = Round()
    for tenant, costs in (("a", first), ("b", second)):
        rounds.add(tenant, "even", *costs[::2])
        rounds.add(tenant, "odd", *costs[1::2])
    leads = [0]
    for wanted in rounds_wanted:
        for chunk in rounds.serve(wanted):
            cost = int(chunk.rsplit("/", 1)[1])
            leads.append(leads[-1] + (cost if chunk.startswith("a") else -cost))
        if any(not any(jobs.values()) for jobs in rounds.queues.values()):
            # Only while both have something to serve.
            leads = leads[:-wanted]
            break
    assert max(leads, default=0) - min(leads, default=0) <= 3 * QUANTUM


@given(
    backlogs=st.lists(st.lists(COSTS, min_size=30, max_size=30), min_size=1, max_size=5),
    newcomer=COSTS,
    before=st.integers(1, 20),
)
def test_new_tenant_is_served_within_one_round(
    backlogs: list[list[int]], newcomer: int, before: int
) -> None:
    rounds = Round()
    for number, costs in enumerate(backlogs):
        rounds.add(f"old {number}", "job", *costs)
    rounds.serve(before)
    rounds.add("new", "job", newcomer)
    assert owners(rounds.serve(1)) == ["new"]


@given(
    tenants=st.dictionaries(
        st.sampled_from("abcd"),
        st.dictionaries(st.sampled_from("xyz"), st.lists(COSTS, max_size=8), max_size=3),
        max_size=4,
    ),
    wanted=st.integers(0, 6),
)
def test_every_chunk_is_chosen_once_and_no_turn_is_lost(
    tenants: dict[str, dict[str, list[int]]], wanted: int
) -> None:
    rounds = Round()
    count = 0
    for tenant, jobs in tenants.items():
        for job, costs in jobs.items():
            rounds.add(tenant, job, *costs)
            count += len(costs)
    chosen: list[str] = []
    while wanted and (taken := rounds.serve(wanted)):
        assert len(taken) <= wanted
        chosen += taken
        # Who can take nothing more waits for nothing; nobody is ever in debt.
        assert all(0 <= deficit < 2 * QUANTUM for _, deficit in rounds.kept.values())
    assert len(chosen) == len(set(chosen)) == (count if wanted else 0)
