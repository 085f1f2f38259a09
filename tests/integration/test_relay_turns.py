"""Whose chunks are rung, and in which order: tenants and jobs take turns, by time."""

from __future__ import annotations

from sqlalchemy import func, select, update

from app.db.session import Database
from app.dispatch.offers import drop_old_turns
from app.dispatch.turns import QUANTUM
from app.jobs.tables import Job, TurnRow
from tests.factories import make_tenant
from tests.jobs import finish, make_job
from tests.relay import Bells, add_workers, serve


def test_two_tenants_take_turns_whatever_each_has_queued(
    bells: Bells, quiet: Database, owner: str
) -> None:
    other = make_tenant(quiet)
    add_workers(quiet, count=2)
    mine = set()
    for _ in range(5):
        _, chunks = make_job(quiet, owner, *[1] * 10, priority=10)
        mine.update(chunks)
    make_job(quiet, other, *[1] * 10)
    bells.ring()
    turns = [chunk in mine for chunk in bells.take()]
    assert len(turns) == 8
    assert sum(turns) == 4
    assert all(turns[at] != turns[at + 1] for at in range(0, 8, 2))


def test_three_tenants_share_one_slot_over_many_rounds(
    bells: Bells, quiet: Database, owner: str
) -> None:
    tenants = [owner, make_tenant(quiet), make_tenant(quiet)]
    add_workers(quiet, slots=1)
    for tenant in tenants:
        for _ in range(2):
            make_job(quiet, tenant, *[1] * 5)
    served = [each for _ in range(9) for each in serve(bells, quiet)]
    assert len(served) == 18
    assert all(set(served[at : at + 3]) == set(tenants) for at in range(0, 18, 3))


def test_jobs_of_one_tenant_take_turns_over_many_rounds(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=1)
    jobs = {}
    for _ in range(5):
        job_id, chunks = make_job(quiet, owner, *[1] * 4)
        jobs.update(dict.fromkeys(chunks, job_id))
    order = []
    for _ in range(5):
        bells.ring()
        for chunk_id in bells.take():
            finish(quiet, owner, chunk_id)
            order.append(jobs[chunk_id])
    assert len(set(order[:5])) == len(set(order[5:])) == 5


def test_turns_are_by_time_and_not_by_number_of_chunks(
    bells: Bells, quiet: Database, owner: str
) -> None:
    other = make_tenant(quiet)
    add_workers(quiet, slots=1)
    make_job(quiet, owner, *[8] * 10)
    # Quarters: a model version whose full chunks hold four times as many items.
    job_id, _ = make_job(quiet, other, *[8] * 40)
    with quiet.system() as session:
        session.execute(update(Job).where(Job.id == job_id).values(chunk_items=32))
    served = [each for _ in range(10) for each in serve(bells, quiet)]
    assert (served.count(owner), served.count(other)) == (4, 16)


def test_new_tenant_is_rung_in_the_next_round(bells: Bells, quiet: Database, owner: str) -> None:
    add_workers(quiet, slots=1)
    for tenant in [owner, *[make_tenant(quiet) for _ in range(4)]]:
        make_job(quiet, tenant, *[1] * 10)
    for _ in range(4):
        serve(bells, quiet)
    late = make_tenant(quiet)
    make_job(quiet, late, 1)
    assert serve(bells, quiet)[0] == late


def test_turns_of_ended_jobs_are_forgotten_and_of_waiting_ones_kept(
    bells: Bells, quiet: Database, owner: str
) -> None:
    add_workers(quiet, slots=1)
    ended, _ = make_job(quiet, owner, 1)
    waiting, _ = make_job(quiet, owner, *[1] * 3)
    serve(bells, quiet)
    long_ago = TurnRow.since - func.make_interval(0, 0, 0, 0, 0, 0, 600)
    with quiet.system() as session:
        session.execute(update(TurnRow).values(since=long_ago))
    drop_old_turns(quiet)
    with quiet.system() as session:
        kept = session.execute(select(TurnRow.job_id, TurnRow.deficit)).all()
    assert {row.job_id for row in kept} == {"", waiting}
    assert all(row.deficit <= QUANTUM for row in kept)
    assert ended not in {row.job_id for row in kept}


def test_priority_orders_the_jobs_of_one_tenant(bells: Bells, quiet: Database, owner: str) -> None:
    add_workers(quiet)
    make_job(quiet, owner, *[1] * 3)
    _, urgent = make_job(quiet, owner, *[1] * 3, priority=5)
    bells.ring()
    assert bells.take()[:3] == urgent
