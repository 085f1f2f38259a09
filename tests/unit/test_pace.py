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


#: More than the buffers of a pair of sockets take.
LONG = b"x" * 4_000_000


def test_answer_that_is_read_comes_whole_and_needs_no_place(pair, places):
    places.acquire()
    heard = bytearray()

    def read() -> None:
        while piece := pair[1].recv(65536):
            heard.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    PacedSocket(pair[0], places).sendall(LONG)
    pair[0].shutdown(socket.SHUT_WR)
    reader.join()
    assert bytes(heard) == LONG


def test_answer_that_nobody_reads_takes_a_place_and_is_cut_in_the_end(pair, places):
    pair[0].settimeout(0.4)
    paced = PacedSocket(pair[0], places)
    with pytest.raises(TooSlowError):
        paced.sendall(LONG)
    assert not places.acquire(blocking=False)
    assert pair[0].gettimeout() == 0.4
    paced.end()
    assert places.acquire(blocking=False)


def test_answer_that_nobody_reads_is_cut_after_a_moment_where_there_is_no_place(pair, places):
    places.acquire()
    # No bound of its own: this would never end.
    pair[0].settimeout(None)
    with pytest.raises(TooSlowError):
        PacedSocket(pair[0], places).sendall(LONG)


def test_download_may_wait_for_its_client_without_a_place(pair, places):
    pair[0].settimeout(0.4)
    paced = PacedSocket(pair[0], places)
    paced.begin_download()
    with pytest.raises(TooSlowError):
        paced.sendall(LONG)
    assert places.acquire(blocking=False)
