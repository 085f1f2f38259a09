"""Tests of the tests: designs that lose work or do it twice are seen to, by the same barriers.

Each of these was, or nearly was, ours (the measurements are in the delivery design); a race test
that passes with them too would prove nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.record import record_stopped
from app.jobs.states import ChunkState, JobState
from tests.jobs import (
    assert_closed,
    at_once,
    claim,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_job,
    record_all,
    try_claim,
)
from tests.races import tell

JOBS = 20
#: Returns when both transactions have come so far.
Meet = Callable[[], object]

_DONE = text(
    "UPDATE chunks SET state = 'done', lease_until = NULL, worker_id = NULL WHERE id = :chunk"
)
_LEFT = text("SELECT count(*) FROM chunks WHERE job_id = :job AND state IN ('pending', 'running')")
# ``seq`` counts the closings here.
_CLOSE = text(
    "UPDATE jobs SET state = 'succeeded', ended_at = now(), seq = seq + 1 WHERE id = :job"
)


def both(first: Callable[[Meet], object], second: Callable[[Meet], object]) -> list[object]:
    """Run the two at once; each may wait for the other once or more often."""
    barrier = threading.Barrier(2, timeout=30)
    answers = at_once(lambda: first(barrier.wait), lambda: second(barrier.wait))
    assert not any(isinstance(answer, BaseException) for answer in answers), answers
    return answers


def counts_then_closes(db: Database, lease: Lease, meet: Meet) -> None:
    """One transaction: it cannot see that the other chunk is done too."""
    with db.system() as session:
        session.execute(_DONE, {"chunk": lease.chunk_id})
        meet()
        _close_if_none_is_left(session, lease)
        meet()


def commits_then_counts(db: Database, lease: Lease, meet: Meet) -> None:
    """The chunk is committed first: both see that nothing is left."""
    with db.system() as session:
        session.execute(_DONE, {"chunk": lease.chunk_id})
    meet()
    with db.system() as session:
        _close_if_none_is_left(session, lease)


def _close_if_none_is_left(session: Session, lease: Lease) -> None:
    if session.scalar(_LEFT, {"job": lease.job_id}) == 0:
        session.execute(_CLOSE, {"job": lease.job_id})


def records_as_we_do(db: Database, lease: Lease, meet: Meet) -> None:
    meet()
    record_all(db, lease)


@pytest.mark.parametrize(
    ("record", "closings"),
    [(counts_then_closes, 0), (commits_then_counts, 2), (records_as_we_do, 1)],
)
def test_two_last_records_close_the_job_never_twice_or_once_by_the_design(
    quiet: Database,
    owner: str,
    record: Callable[[Database, Lease, Meet], None],
    closings: int,
) -> None:
    for _ in range(JOBS):
        job_id, chunks = make_job(quiet, owner, 2, 2)
        one, other = (claim(quiet, owner, chunk) for chunk in chunks)
        both(
            partial(record, quiet, one),
            partial(record, quiet, other),
        )
        if record is records_as_we_do:
            assert_closed(quiet, owner, job_id, JobState.SUCCEEDED)
            continue
        job = look_at_job(quiet, owner, job_id)
        assert job.seq == closings
        assert (job.ended_at is not None) == bool(closings)


def looks_then_takes(db: Database, tenant_id: str, chunk_id: str, meet: Meet) -> bool:
    """A claim in two statements: both see the chunk waiting."""
    with db.system() as session:
        free = session.scalar(
            text("SELECT state = 'pending' FROM chunks WHERE id = :chunk"), {"chunk": chunk_id}
        )
        meet()
        if free:
            session.execute(
                text(
                    "UPDATE chunks SET state = 'running', attempt = attempt + 1, "
                    "worker_id = 'wrk_x', lease_until = now() + interval '30 s' WHERE id = :chunk"
                ),
                {"chunk": chunk_id},
            )
    return bool(free)


def claims_as_we_do(db: Database, tenant_id: str, chunk_id: str, meet: Meet) -> bool:
    meet()
    return try_claim(db, tenant_id, chunk_id) is not None


@pytest.mark.parametrize(("take", "owners"), [(looks_then_takes, 2), (claims_as_we_do, 1)])
def test_two_claims_give_a_chunk_two_owners_or_one_by_the_design(
    quiet: Database,
    owner: str,
    take: Callable[[Database, str, str, Meet], bool],
    owners: int,
) -> None:
    for _ in range(JOBS):
        _, (chunk,) = make_job(quiet, owner, 2)
        answers = both(
            partial(take, quiet, owner, chunk),
            partial(take, quiet, owner, chunk),
        )
        assert answers.count(True) == owners
        assert look_at_chunk(quiet, chunk).attempt == owners


def test_record_without_the_fence_counts_the_items_of_a_chunk_twice(
    quiet: Database, owner: str
) -> None:
    job_id, chunks = make_job(quiet, owner, 2, 2)
    late = claim(quiet, owner, chunks[0])
    lose_worker(quiet, chunks[0])
    new = claim(quiet, owner, chunks[0])

    def record_whatever_the_attempt(lease: Lease, meet: Meet) -> None:
        meet()
        with quiet.system() as session:
            session.execute(_DONE, {"chunk": lease.chunk_id})
            session.execute(
                text("UPDATE jobs SET succeeded = succeeded + :items WHERE id = :job"),
                {"items": lease.hi - lease.lo, "job": lease.job_id},
            )

    both(
        lambda meet: record_whatever_the_attempt(late, meet),
        lambda meet: record_whatever_the_attempt(new, meet),
    )
    # Two of four items were recognised, and all four are counted.
    assert look_at_job(quiet, owner, job_id).succeeded == 4
    assert look_at_chunk(quiet, chunks[1]).state == ChunkState.PENDING


def looks_without_the_lock(db: Database, lease: Lease, meet: Meet) -> None:
    """Lets go, looks whether it was the last to do so, and locks the job only to end it."""
    with db.system() as session:
        session.execute(
            text(
                "UPDATE chunks SET state = 'cancelled', lease_until = NULL, worker_id = NULL "
                "WHERE id = :chunk"
            ),
            {"chunk": lease.chunk_id},
        )
        meet()
        _close_if_none_is_left(session, lease)
        meet()


def lets_go_as_we_do(db: Database, lease: Lease, meet: Meet) -> None:
    meet()
    with db.tenant(lease.tenant_id) as session:
        record_stopped(session, lease)


@pytest.mark.parametrize(
    ("let_go", "state"),
    [(looks_without_the_lock, JobState.CANCELLING), (lets_go_as_we_do, JobState.CANCELLED)],
)
def test_two_workers_that_let_go_leave_a_cancelled_job_open_or_end_it_by_the_design(
    quiet: Database, owner: str, let_go: Callable[[Database, Lease, Meet], None], state: JobState
) -> None:
    for _ in range(JOBS):
        job_id, chunks = make_job(quiet, owner, 2, 2)
        one, other = (claim(quiet, owner, chunk) for chunk in chunks)
        tell(quiet, owner, job_id, cancel_job)
        both(
            partial(let_go, quiet, one),
            partial(let_go, quiet, other),
        )
        assert look_at_job(quiet, owner, job_id).state == state
