"""What arrives on the socket before anything is a request: framing, heads, slowness, floods.

Against the server as it is run. After each attack a neighbour is answered at once by the same
process, and at the end it has not grown.
"""

from __future__ import annotations

import gzip
import os
import socket
import time

import pytest

from tests.api_client import import_body, make_key
from tests.factories import make_tenant
from tests.http_server import HttpServer, Reply, peak_kib, read_reply, running_api

#: RELIABILITY §3 gives every hostile input so long, and the process so much memory.
LIMIT_SECONDS, LIMIT_KIB = 10, 512 * 1024
#: "At once" on a machine that other tests share.
AT_ONCE_SECONDS = 3


@pytest.fixture(scope="module")
def server(settings, objects):
    with running_api(settings, objects, threads=4) as server:
        yield server
        assert peak_kib(server.pid) < LIMIT_KIB


@pytest.fixture(scope="module")
def key(database, settings):
    return make_key(database, settings, make_tenant(database))


@pytest.fixture(autouse=True)
def neighbour(server):
    """Whatever was sent: the next one is served, by the process that served before."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_SECONDS + AT_ONCE_SECONDS
    assert_serves(server)
    os.kill(server.pid, 0)


def assert_serves(server: HttpServer) -> None:
    began = time.monotonic()
    assert server.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status == 200
    assert time.monotonic() - began < AT_ONCE_SECONDS


def head(path: str, *lines: str, key: str = "", method: str = "POST") -> bytes:
    """The head of a request that closes its connection."""
    given = [f"Authorization: Bearer {key}"] if key else []
    text = [f"{method} {path} HTTP/1.1", "Host: darkroom", "Connection: close", *given, *lines]
    return ("\r\n".join(text) + "\r\n\r\n").encode("latin-1")


JSON = "Content-Type: application/json"
BODY = str(import_body()).replace("'", '"').encode()
OPEN_LENGTH = "Transfer-Encoding: chunked"

MALFORMED = {
    "two lengths": head("/v1/jobs", JSON, "Content-Length: 2", "Content-Length: 30") + b"{}",
    "the same length twice": head("/v1/jobs", JSON, "Content-Length: 2", "Content-Length: 2")
    + b"{}",
    "a list of lengths": head("/v1/jobs", JSON, "Content-Length: 2, 2") + b"{}",
    "length and chunks": head("/v1/jobs", JSON, "Content-Length: 2", OPEN_LENGTH)
    + b"0\r\n\r\nGET /v1/keys HTTP/1.1\r\n\r\n",
    "chunks and length": head("/v1/jobs", JSON, OPEN_LENGTH, "Content-Length: 2") + b"0\r\n\r\n",
    "negative length": head("/v1/jobs", JSON, "Content-Length: -1"),
    "signed length": head("/v1/jobs", JSON, "Content-Length: +2") + b"{}",
    "length with digits of others": head("/v1/jobs", JSON, "Content-Length: ²") + b"{}",
    "hexadecimal length": head("/v1/jobs", JSON, "Content-Length: 0x2") + b"{}",
    "chunked twice": head("/v1/jobs", JSON, "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "chunked not last": head("/v1/jobs", JSON, "Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    "chunks of HTTP/1.0": b"POST /v1/jobs HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": head("/v1/jobs", JSON, "Content-Length : 2") + b"{}",
    "underscored length": head("/v1/jobs", JSON, "Content Length: 2") + b"{}",
    "folded header": head("/v1/jobs", JSON, "X-A: b\r\n c", "Content-Length: 2") + b"{}",
    "bare line feed": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "bare line feed in the head": b"GET /livez HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n",
    "bare carriage return": head("/v1/jobs", JSON, "X-A: b\rContent-Length: 2"),
    "nul in a header": head("/livez", "X-A: b\0c", method="GET"),
    "no name": head("/livez", ": b", method="GET"),
    "two hosts": head("/livez", "Host: evil.example", method="GET"),
    "HTTP/0.9": b"GET /livez\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"\r\n" * 2,
    "lower case method": head("/livez", method="get"),
    "space in the target": b"GET /v1/jobs /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "control character in the target": b"GET /v1/jobs\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "byte that is no ASCII in the target": b"GET /v1/jobs\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "smuggled request in a header": head(
        "/livez", "X-A: b\r\n\r\nGET / HTTP/1.1\r\n c", method="get"
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_request_of_two_meanings_or_none_is_refused_and_the_connection_closed(server, case):
    with server.connect() as connection:
        connection.sendall(MALFORMED[case])
        reply = read_reply(connection)
        assert (reply.status, reply.code) == (400, "request_malformed")
        # What stands behind it was not taken for another request.
        assert connection.recv(65536) == b""
    assert_is_ours(reply)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (head("/livez", "X-A: " + "b" * 65536, method="GET"), 431, "headers_too_large"),
        (
            head("/livez", *[f"X-A{n}: b" for n in range(10_000)], method="GET"),
            431,
            "headers_too_large",
        ),
        (head("/livez?" + "a" * 5000, method="GET"), 414, "uri_too_long"),
        (
            head("/v1/jobs?" + "&".join(f"a{n}" for n in range(100_000)), method="GET"),
            414,
            "uri_too_long",
        ),
        (b"GET /" + b"a" * 1_000_000, 414, "uri_too_long"),
        (head("/v1/jobs", "Transfer-Encoding: dance"), 501, "transfer_coding_unsupported"),
        (head("/v1/jobs", "Expect: a miracle"), 417, "expectation_failed"),
    ],
    ids=lambda value: str(value)[:30] if not isinstance(value, bytes) else None,
)
def test_head_beyond_the_limits_is_refused_with_the_code_of_its_limit(server, sent, status, code):
    reply = server.send(sent)
    assert (reply.status, reply.code) == (status, code)
    assert_is_ours(reply)


def assert_is_ours(reply: Reply) -> None:
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Request-Id"].startswith("req_")
    assert b"<" not in reply.body


BODIES = {
    "broken chunk size": (b"xyz\r\n{}\r\n0\r\n\r\n", 400, "body_incomplete"),
    "negative chunk size": (b"-2\r\n{}\r\n0\r\n\r\n", 400, "body_incomplete"),
    "chunk that lies": (b"1\r\n{}\r\n0\r\n\r\n", 400, "body_incomplete"),
    "endless chunk size": (b"0" * 100_000, 400, "body_incomplete"),
    "endless chunk extension": (b"2;" + b"a" * 100_000, 400, "body_incomplete"),
    "trailer that names a length": (
        b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n",
        400,
        "body_incomplete",
    ),
    "endless trailers": (b"2\r\n{}\r\n0\r\n" + b"X-A: b\r\n" * 500_000, 400, "body_incomplete"),
    "large chunks": ((b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 3, 413, "too_large"),
    "tiny chunks": (b"1\r\n \r\n" * 3_000_000, 413, "too_large"),
}


@pytest.mark.parametrize(
    ("case", "path"),
    [
        *((case, "/v1/jobs") for case in BODIES),
        # An upload may be large; what is broken is so for it, too.
        *((case, "/v1/uploads?kind=weights") for case in BODIES if BODIES[case][1] != 413),
    ],
)
def test_broken_or_endless_chunks_end_with_a_named_code(server, key, case, path):
    body, status, code = BODIES[case]
    began = time.monotonic()
    reply = server.send(head(path, JSON, OPEN_LENGTH, key=key), body)
    assert (reply.status, reply.code) == (status, code)
    assert time.monotonic() - began < LIMIT_SECONDS


@pytest.fixture(scope="module")
def bomb():
    return gzip.compress(b" " * 50_000_000)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/uploads"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip", "GZIP"])
def test_packed_body_is_refused_before_it_is_read(server, key, bomb, path, coding):
    lines = (JSON, f"Content-Encoding: {coding}", f"Content-Length: {len(bomb)}")
    reply = server.send(head(path, *lines, key=key), bomb)
    assert (reply.status, reply.code) == (415, "content_encoding_unsupported")


def test_packed_transfer_is_refused(server, key):
    reply = server.send(
        head("/v1/jobs", JSON, "Transfer-Encoding: gzip, chunked", key=key), b"0\r\n\r\n"
    )
    assert (reply.status, reply.code) == (415, "content_encoding_unsupported")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/uploads"])
def test_form_of_10_000_parts_is_refused_unread(server, key, path):
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    form = part * 10_000 + b"--x--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x"
    reply = server.send(head(path, kind, f"Content-Length: {len(form)}", key=key), form)
    assert (reply.status, reply.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v1/jobs/%2e%2e/keys", 404, "not_found"),
        ("/v1/jobs/../keys", 404, "not_found"),
        ("/v1/jobs/%252e%252e", 404, "not_found"),
        ("/v1/jobs/..%2fkeys", 404, "not_found"),
        ("/v1/jobs/%2e%2e%2fkeys", 404, "not_found"),
        ("/v1/jobs/%00", 404, "not_found"),
        ("/v1/jobs/job_%00", 404, "not_found"),
        ("/v1/jobs/%0d%0aSet-Cookie:%20a=b", 404, "not_found"),
        ("/v1/jobs/%c0%ae%c0%ae", 404, "not_found"),
        ("/v1/jobs/%ff", 404, "not_found"),
        ("/v1/jobs/%zz", 404, "not_found"),
        ("/v1\\jobs", 404, "not_found"),
        ("/v1/jobs;x=1", 404, "not_found"),
        ("/V1/JOBS", 404, "not_found"),
        ("/v1/jobs/", 404, "not_found"),
        ("/v1/models/..%2f..%2fetc/versions", 404, "not_found"),
        ("/v1/docs/..%2f..%2fapp.py", 404, "not_found"),
        ("/v1/docs/../../app.py", 404, "not_found"),
        ("*", 400, "request_malformed"),
        ("/v1/jobs?limit=-1", 422, "request_invalid"),
        ("/v1/jobs?limit=99999999999999999999", 422, "request_invalid"),
        ("/v1/jobs?limit=%D9%A1", 422, "request_invalid"),
        ("/v1/jobs?limit=1&limit=2", 422, "parameter_repeated"),
        ("/v1/jobs?after=%ff", 422, "request_invalid"),
    ],
)
def test_target_in_disguise_leads_nowhere(server, key, target, status, code):
    reply = server.send(head(target, key=key, method="GET"))
    assert (reply.status, reply.code) == (status, code)
    assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize("target", ["//v1/jobs", "/v1//jobs", "http://evil.example/v1/jobs"])
def test_target_that_others_would_normalise_needs_the_key_of_where_it_leads(server, key, target):
    reply = server.send(head(target, method="GET"))
    # Either it leads nowhere, or to the route and so to its guard; never past it.
    assert (reply.status, reply.code) in ((404, "not_found"), (401, "key_missing"))
    assert "evil" not in reply.headers.get("Location", "")


@pytest.mark.parametrize(
    "host", ["evil.example", "a b", "x/../y", '"><script>', "x@y", "[::1", "", "a" * 4000]
)
def test_host_of_the_clients_choice_appears_in_no_address_that_others_see(server, key, host):
    line = f"Host: {host}"
    for path in ("/", "/v1/jobs", "/v1/docs"):
        text = f"GET {path} HTTP/1.1\r\n{line}\r\nConnection: close\r\n"
        reply = server.send(f"{text}Authorization: Bearer {key}\r\n\r\n".encode())
        assert reply.status in (200, 400)
        assert "Location" not in reply.headers
        assert b"<script>" not in reply.body
        if path != "/v1/docs":
            assert b"evil" not in reply.body


def test_no_header_makes_another_method_or_another_address_of_a_request(server, key):
    for line in (
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "X-Original-URL: /v1/keys",
        "X-Rewrite-URL: /v1/keys",
        "X-Forwarded-Prefix: /v1/keys",
        "X-Script-Name: /v1",
    ):
        reply = server.send(head("/v1/jobs?limit=1", line, key=key, method="GET"))
        assert (reply.status, reply.body[:9]) == (200, b'{"first_i')


def test_script_of_another_site_is_let_in_nowhere(server, key):
    for method, path in (
        ("GET", "/v1/jobs"),
        ("OPTIONS", "/v1/jobs"),
        ("GET", "/livez"),
        ("TRACE", "/"),
    ):
        reply = server.send(
            head(
                path,
                "Origin: https://evil.example",
                "Access-Control-Request-Method: POST",
                "Cookie: a=secret",
                key=key,
                method=method,
            )
        )
        assert not [name for name in reply.headers if name.startswith("Access-Control")]
        assert b"secret" not in reply.body


def test_request_behind_one_that_was_refused_unread_is_not_taken_from_its_body(server, key):
    smuggled = (
        b"GET /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key.encode() + b"\r\n\r\n"
    )
    lines = f"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(lines.encode() + smuggled)
        assert read_reply(connection).status == 404
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_reply(connection).body == b'{"status":"live"}'


#: What a head that never ends begins with → what its client hears in the end.
SLOW = {
    b"": (0, None),
    b"GET /livez HT": (408, "request_too_slow"),
    b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A": (408, "request_too_slow"),
}


def test_heads_that_never_end_hold_no_thread(server):
    crowd = [(server.connect(), begin) for _ in range(20) for begin in SLOW]
    try:
        for connection, begin in crowd:
            connection.sendall(begin)
        for _ in range(5):
            assert_serves(server)
        for connection, begin in crowd[:3]:
            reply = read_reply(connection)
            # Nothing was asked where nothing was sent.
            assert (reply.status, reply.code if reply.body else None) == SLOW[begin]
    finally:
        for connection, _ in crowd:
            connection.close()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/nowhere"])
def test_bodies_that_never_come_hold_few_threads_and_not_for_long(server, key, path):
    crowd = [server.connect() for _ in range(8)]
    try:
        for connection in crowd:
            connection.sendall(head(path, JSON, "Content-Length: 1000000", key=key) + b"{")
        # All threads but that of the one place for slow clients are free again after a second.
        replies = [read_reply(connection) for connection in crowd[1:]]
        expected = {(408, "request_too_slow")} if path == "/v1/jobs" else {(404, "not_found")}
        assert {(reply.status, reply.code) for reply in replies} <= expected
        assert_serves(server)
    finally:
        for connection in crowd:
            connection.close()


def test_slow_uploads_leave_threads_to_others(server, key):
    crowd = [server.connect() for _ in range(8)]
    try:
        for connection in crowd:
            connection.sendall(
                head("/v1/uploads?kind=weights", "Content-Length: 1000000", key=key) + b"x"
            )
        for _ in range(3):
            assert_serves(server)
        replies = [read_reply(connection) for connection in crowd[3:]]
        assert {(each.status, each.code) for each in replies} == {(503, "uploads_busy")}
    finally:
        for connection in crowd:
            connection.close()


def test_clients_that_never_read_their_answers_leave_threads_to_others(server):
    crowd = [socket.socket() for _ in range(8)]
    try:
        for connection in crowd:
            # So little is taken up on the way that the answer stands in the server's thread.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", server.port))
            ask = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
            # Many, since one answer may fit into the buffers of the system.
            connection.sendall(ask * 60)
        # Their threads, all but that of the one place for slow clients, are free after a second:
        # it takes a moment until the buffers are full, so this asks for longer.
        began = time.monotonic()
        while time.monotonic() - began < AT_ONCE_SECONDS + 2:
            assert_serves(server)
    finally:
        for connection in crowd:
            connection.close()
