"""The clock between a client's bytes and the thread that reads them."""

from __future__ import annotations

import socket
import threading

import pytest

from app.api import pace
from app.api.pace import PacedSocket, TooSlowError


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for name, seconds in (
        ("HEAD_SECONDS", 0.4),
        ("BODY_SECONDS", 0.4),
        ("UPLOAD_GRACE_SECONDS", 0.2),
        ("PATIENCE_SECONDS", 0.1),
    ):
        monkeypatch.setattr(pace, name, seconds)


@pytest.fixture
def places():
    return threading.BoundedSemaphore(1)


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_bytes_that_are_there_come_at_once_and_need_no_place(pair, places):
    places.acquire()
    pair[1].sendall(b"abc")
    paced = PacedSocket(pair[0], places)
    assert paced.recv(10) == b"abc"
    pair[1].close()
    assert paced.recv(10) == b""


def test_slow_client_takes_a_place_gives_it_back_and_is_cut_in_the_end(pair, places):
    paced = PacedSocket(pair[0], places)
    paced.begin_body()
    with pytest.raises(TooSlowError):
        paced.recv(10)
    assert paced.is_cut
    assert not places.acquire(blocking=False)
    paced.end()
    assert places.acquire(blocking=False)


def test_slow_client_that_finds_no_place_is_cut_after_a_moment(pair, places):
    places.acquire()
    paced = PacedSocket(pair[0], places)
    paced.begin_head()
    with pytest.raises(TooSlowError):
        paced.recv(10)
    # It never had a place, so it gives none back.
    paced.end()
    assert not places.acquire(blocking=False)


def test_upload_goes_on_as_long_as_it_keeps_its_rate(pair, places):
    places.acquire()
    paced = PacedSocket(pair[0], places)
    paced.begin_upload(1000)
    pair[1].sendall(b"x" * 1000)
    assert len(paced.recv(10_000)) == 1000
    # A thousand bytes are worth another second.
    timer = threading.Timer(0.4, pair[1].sendall, [b"y"])
    timer.start()
    assert paced.recv(10) == b"y"
    timer.join()


def test_upload_below_its_rate_is_cut(pair, places):
    paced = PacedSocket(pair[0], places)
    paced.begin_upload(1000)
    pair[1].sendall(b"x")
    assert paced.recv(10) == b"x"
    with pytest.raises(TooSlowError):
        paced.recv(10)


def test_body_of_too_many_bytes_on_the_way_is_cut(pair, places, monkeypatch):
    monkeypatch.setattr(pace, "BODY_BYTES", 3)
    paced = PacedSocket(pair[0], places)
    paced.begin_body()
    pair[1].sendall(b"abcdef")
    assert paced.recv(4) == b"abcd"
    with pytest.raises(OSError, match="too many bytes"):
        paced.recv(4)
    assert paced.is_over


def test_silence_longer_than_the_sockets_own_bound_is_cut(pair, places):
    paced = PacedSocket(pair[0], places)
    paced.settimeout(0.05)
    with pytest.raises(TooSlowError):
        paced.recv(1)
    assert paced.gettimeout() == 0.05
