"""The gate of a worker: many together or one alone, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.service import wait_until
from worker.gate import Gate

PATIENCE = 20


@pytest.fixture
def stopping() -> threading.Event:
    """Set it and the process stops."""
    return threading.Event()


@pytest.fixture
def gate(stopping: threading.Event) -> Gate:
    """A gate that nobody holds."""
    return Gate(stopping)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Other slots of the worker."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_many_hold_it_together(gate: Gate) -> None:
    with gate.together() as first, gate.together() as second:
        assert first
        assert second


def test_one_holds_it_alone_and_others_enter_afterwards(
    gate: Gate, threads: ThreadPoolExecutor
) -> None:
    inside = threading.Event()

    def enter() -> bool:
        with gate.together() as entered:
            inside.set()
            return entered

    with gate.alone(PATIENCE) as passage:
        assert passage is not None
        others = [threads.submit(enter) for _ in range(3)]
        assert not inside.wait(0.3)
    assert all(other.result(PATIENCE) for other in others)


def test_who_wants_it_alone_goes_before_those_that_come_later(
    gate: Gate, threads: ThreadPoolExecutor
) -> None:
    order: list[str] = []

    def alone() -> None:
        with gate.alone(PATIENCE):
            order.append("alone")

    def together() -> None:
        with gate.together():
            order.append("together")

    with gate.together():
        first = threads.submit(alone)
        wait_until(lambda: gate.wanted_seconds > 0, "somebody waits")
        second = threads.submit(together)
    first.result(PATIENCE)
    second.result(PATIENCE)
    assert order == ["alone", "together"]


def test_patience_ends_and_leaves_the_gate_as_it_was(
    gate: Gate, threads: ThreadPoolExecutor
) -> None:
    with gate.together():
        with gate.alone(0.01) as passage:
            assert passage is None
        with gate.together() as entered:
            assert entered
    with gate.alone(PATIENCE) as passage:
        assert passage is not None
        # One that gives up beside it must not open the gate for others.
        assert threads.submit(_try_alone, gate).result(PATIENCE) is False
        late = threads.submit(_enter, gate)
        assert not late.done()
    assert late.result(PATIENCE)


def _try_alone(gate: Gate) -> bool:
    with gate.alone(0.01) as passage:
        return passage is not None


def _enter(gate: Gate) -> bool:
    with gate.together() as entered:
        return entered


def test_passage_that_is_shared_lets_others_in_and_ends_once(gate: Gate) -> None:
    with gate.alone(PATIENCE) as passage:
        assert passage is not None
        passage.share()
        passage.share()
        with gate.together() as entered:
            assert entered
    with gate.alone(PATIENCE) as passage:
        assert passage is not None


def test_process_that_stops_lets_nobody_in_any_more(
    gate: Gate, stopping: threading.Event, threads: ThreadPoolExecutor
) -> None:
    with gate.together():
        waiting = threads.submit(_try_long, gate)
        wait_until(lambda: gate.wanted_seconds > 0, "somebody waits")
        stopping.set()
        assert waiting.result(PATIENCE) is False
    with gate.together() as entered:
        assert not entered


def _try_long(gate: Gate) -> bool:
    with gate.alone(600) as passage:
        return passage is not None


def test_suspect_inside_is_no_reason_for_the_others_to_make_room(
    gate: Gate, threads: ThreadPoolExecutor
) -> None:
    def wait_alone() -> bool:
        with gate.alone(PATIENCE) as passage:
            return passage is not None

    with gate.together():
        assert gate.wanted_seconds == 0
        waiting = threads.submit(wait_alone)
        wait_until(lambda: gate.wanted_seconds > 0, "somebody waits to be alone")
    assert waiting.result(PATIENCE)
    with gate.alone(PATIENCE):
        second = threads.submit(wait_alone)
        wait_until(lambda: gate._waiting > 0, "another waits")
        assert gate.wanted_seconds == 0
    assert second.result(PATIENCE)
