"""The application under gunicorn, as it is run: memory, waiting, stopping."""

import json
import os
import signal
import socket
import sys
import time

import pytest

from app.client import Darkroom
from tests.api_client import Api, import_body, make_key
from tests.http_server import peak_kib, running_api
from tests.jobs import finish, make_job
from tests.proxy import CuttingProxy

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(settings, objects):
    """The application under gunicorn, as it is run; yields its port and the worker's pid."""
    with running_api(settings, objects) as server:
        yield server.port, server.pid


@pytest.fixture
def stopping(settings, objects):
    """One of the test's own, which it stops."""
    with running_api(settings, objects) as server:
        yield server.port, server.pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_upload_of_100_mb_leaves_the_memory_of_the_server_as_it_was(
    server, database, settings, tenant_id
):
    port, pid = server
    key = make_key(database, settings, tenant_id)
    size, piece = 100 * MIB, os.urandom(MIB)

    def send(size):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(
                b"POST /v1/uploads HTTP/1.1\r\nHost: darkroom\r\nConnection: close\r\n"
                + f"Content-Length: {size}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
            for _ in range(size // MIB):
                connection.sendall(piece)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 202 " in head.split(b"\r\n")[0], answer
        return json.loads(body)

    # The first one loads what uploads need; the worker may still be starting.
    send(20 * MIB)
    before, began = peak_kib(pid), time.monotonic()
    upload = send(size)["upload"]
    seconds = time.monotonic() - began
    after = peak_kib(pid)
    print(  # noqa: T201  a figure to compare
        f"upload bytes={size} seconds={seconds:.2f} peak_kib_before={before} peak_kib_after={after}"
    )
    assert upload["size_bytes"] == size
    assert after - before < 40 * 1024
    assert after < 300 * 1024


def test_server_that_stops_answers_those_who_wait(stopping, app, database, settings, tenant_id):
    port, pid = stopping
    api = Api(app, make_key(database, settings, tenant_id))
    job = api("POST", "/v1/jobs", json=import_body()).json["id"]
    waiter = make_key(database, settings, tenant_id, name="waiter")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"GET /v1/jobs/{job}?wait=30 HTTP/1.1\r\nHost: darkroom\r\n"
            f"Authorization: Bearer {waiter}\r\n\r\n".encode()
        )
        # Its key was used: the request has arrived, and now it waits.
        while api("GET", "/v1/keys").json["data"][0]["last_used_at"] is None:
            continue
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert time.monotonic() - began < 10


def test_server_that_stops_ends_the_streams_of_events(stopping, app, database, settings, tenant_id):
    port, pid = stopping
    api = Api(app, make_key(database, settings, tenant_id))
    job = api("POST", "/v1/jobs", json=import_body()).json["id"]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: darkroom\r\n"
            f"Authorization: Bearer {api.key}\r\n\r\n".encode()
        )
        heard = b""
        while b"event: job.queued" not in heard:
            piece = connection.recv(65536)
            assert piece, heard
            heard += piece
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        while piece := connection.recv(65536):
            heard += piece
    assert time.monotonic() - began < 10
    # The last chunk of the body: the stream was ended, not torn.
    assert heard.endswith(b"0\r\n\r\n")


def test_client_follows_a_job_over_lost_connections_and_has_each_event_once(
    server, database, settings, tenant_id
):
    port, _ = server
    key = make_key(database, settings, tenant_id)
    job, chunks = make_job(database, tenant_id, *[1] * 6)
    finish(database, tenant_id, chunks[0])
    with (
        CuttingProxy(port, after_bytes=2500) as proxy,
        Darkroom(f"http://127.0.0.1:{proxy.port}", key, pause=lambda _: None) as darkroom,
    ):
        seen = []
        for event in darkroom.jobs.events(job):
            seen.append(event.id)
            if event.type == "job.progress" and event.data["counts"]["done"] < 6:
                finish(database, tenant_id, chunks[event.data["counts"]["done"]])
    assert seen == [str(number) for number in range(1, 9)]
    assert proxy.connections > 1


def test_connection_that_breaks_in_the_middle_fails_the_upload(
    server, app, database, settings, tenant_id
):
    port, _ = server
    api = Api(app, make_key(database, settings, tenant_id))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/uploads HTTP/1.1\r\nHost: darkroom\r\n"
            + f"Content-Length: {MIB}\r\nAuthorization: Bearer {api.key}\r\n\r\nabc".encode()
        )
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"body_incomplete" in answer
    assert [each["state"] for each in api("GET", "/v1/uploads").json["data"]] == ["failed"]
