"""When a worker is taken for hanging or deaf, and when it is not."""

from __future__ import annotations

import threading

import pytest

from app.jobs.claim import Lease
from app.jobs.states import ChunkTask, JobKind
from tests.clock import Clock
from worker import heartbeat
from worker.exits import all_stacks
from worker.heartbeat import HeldLease
from worker.tasks.door import breaks_device
from worker.watchdog import Deafness, Hearing

LEASE = Lease(
    "chk_1",
    "job_1",
    "ten_1",
    ChunkTask.PREDICT,
    attempt=1,
    lo=0,
    hi=3,
    items=None,
    cursor=None,
    kind=JobKind.PREDICT,
    input={},
    options={},
    model_version_id=None,
    dataset_version_id=None,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the heartbeat."""
    clock = Clock()
    monkeypatch.setattr(heartbeat, "monotonic_seconds", clock)
    return clock


@pytest.fixture
def held(clock: Clock) -> HeldLease:
    """A lease that work has just begun under."""
    return HeldLease(LEASE, threading.Event())


def test_work_stalls_once_nothing_has_finished_for_the_stall_time(
    clock: Clock, held: HeldLease
) -> None:
    clock.now += 119
    assert held.stalled_seconds(120) is None
    clock.now += 1
    assert held.stalled_seconds(120) == 120


def test_progress_and_being_asked_whether_to_stop_show_that_work_gets_on(
    clock: Clock, held: HeldLease
) -> None:
    for step in (lambda: held.report(1), held.should_stop, held.move):
        clock.now += 100
        step()
        assert held.stalled_seconds(120) is None


def test_slow_steps_are_given_ten_times_their_time(clock: Clock, held: HeldLease) -> None:
    clock.now += 60
    held.report(1)
    clock.now += 1
    held.report(2)
    clock.now += 599
    assert held.stalled_seconds(120) is None
    clock.now += 1
    assert held.stalled_seconds(120) == 600


def test_lost_and_cancelled_work_that_hangs_stalls_too(clock: Clock, held: HeldLease) -> None:
    held.lost.set()
    held.cancelled.set()
    clock.now += 120
    assert held.stalled_seconds(120) == 120


@pytest.fixture
def hearing() -> Hearing:
    """What a worker heard: nothing yet."""
    return Hearing()


@pytest.fixture
def deafness(hearing: Hearing) -> Deafness:
    """A worker of two slots that is deaf after thirty seconds."""
    return Deafness(hearing, 2, 30)


def test_worker_that_hears_no_bell_though_some_wait_is_deaf(deafness: Deafness) -> None:
    assert not deafness.look(100, 1)
    assert not deafness.look(129, 4)
    assert deafness.look(130, 1)


def test_empty_queue_or_lost_redis_is_no_sign_and_time_begins_anew(deafness: Deafness) -> None:
    for nothing in (0, None):
        assert not deafness.look(100, 3)
        assert not deafness.look(140, nothing)
        assert not deafness.look(141, 3)
        assert not deafness.look(170, 3)


def test_bell_that_is_heard_is_a_sign_of_life(deafness: Deafness, hearing: Hearing) -> None:
    assert not deafness.look(100, 1)
    with hearing.answering():
        pass
    assert not deafness.look(130, 1)
    assert not deafness.look(159, 1)
    assert deafness.look(160, 1)


def test_worker_whose_slots_are_all_taken_need_hear_nothing(
    deafness: Deafness, hearing: Hearing
) -> None:
    with hearing.answering():
        assert not deafness.look(100, 5)
        with hearing.answering():
            assert not deafness.has_free_slot
            assert not deafness.look(500, 5)
        assert not deafness.look(501, 5)
    assert not deafness.look(530, 5)
    assert deafness.look(531, 5)


def test_stacks_name_every_thread_and_where_it_is() -> None:
    waiting, done = threading.Event(), threading.Event()

    def wait_here() -> None:
        waiting.set()
        done.wait()

    thread = threading.Thread(target=wait_here, name="patient")
    thread.start()
    waiting.wait()
    stacks = all_stacks()
    done.set()
    thread.join()
    (stack,) = [lines for name, lines in stacks.items() if name.startswith("patient ")]
    assert any("wait_here" in line for line in stack)


class AcceleratorError(RuntimeError):
    """As torch names it."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (OutOfMemoryError("CUDA out of memory. CUDA error: out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_error_that_leaves_no_device_behind_is_told_from_others(
    error: Exception, broken: bool
) -> None:
    assert breaks_device(error) == broken
