"""The POST to a receiver: bounded in time, follows nothing, repeats no word of the receiver's."""

from __future__ import annotations

import time

import pytest

from app.errors import InvalidInputError
from app.settings import Settings
from app.webhooks.guard import Target
from app.webhooks.hosts import is_named, split_url
from app.webhooks.send import Outcome, post
from tests.receiver import Receiver, raw_server
from tests.webhooks import unchecked


def here(url: str) -> Target:
    """The url, let pass to this machine."""
    return unchecked(url, "127.0.0.1")


def test_status_is_told_and_headers_are_sent() -> None:
    with Receiver() as receiver:
        receiver.status = 204
        outcome = post(here(receiver.url + "?a=1"), b'{"n": 1}', {"webhook-id": "dlv_1"})
    assert outcome == Outcome(204, None)
    assert outcome.is_success
    (received,) = receiver.received
    assert (received.path, received.webhook_id, received.body) == ("/hook?a=1", "dlv_1", {"n": 1})


def test_receiver_that_drips_its_answer_is_cut_off_at_the_total_time() -> None:
    began = time.monotonic()
    with raw_server(b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 100, pause_seconds=0.1) as url:
        outcome = post(here(url), b"{}", {}, connect_seconds=5, total_seconds=0.5)
    assert outcome == Outcome(error="the receiver did not answer in time")
    assert time.monotonic() - began < 5


def test_endless_body_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    with raw_server(head, *[b"x" * 65536] * 100) as url:
        assert post(here(url), b"{}", {}) == Outcome(200, None)


def test_answer_that_is_no_http_is_not_repeated_in_the_log() -> None:
    with raw_server(b"secret banner of an inner service\r\n\r\n") as url:
        outcome = post(here(url), b"{}", {})
    assert outcome.status is None
    assert outcome.error in (
        "the receiver did not answer in HTTP",
        "the connection to the receiver was lost",
    )


def test_receiver_without_a_certificate_is_not_trusted() -> None:
    with Receiver() as receiver:
        outcome = post(here(f"https://127.0.0.1:{receiver.port}/"), b"{}", {})
    assert outcome == Outcome(error="no TLS connection that can be trusted came about")
    assert receiver.received == []


@pytest.mark.parametrize(
    ("url", "patterns"),
    [
        ("https://example.com/hook", ["example.com"]),
        ("https://EXAMPLE.com:443/hook", ["Example.com"]),
        ("http://example.com", ["example.com:80"]),
        ("https://a.b.example.com/", ["*.example.com"]),
        ("https://example.com:8443/", ["other", "example.com:8443"]),
        ("http://127.0.0.1:5000/", ["127.0.0.1:*"]),
        ("http://[::1]:5000/", ["[::1]:5000"]),
        ("http://[::1]/", ["[::1]"]),
        ("https://anything.at.all/", ["*"]),
    ],
)
def test_host_that_is_named_is_allowed(url: str, patterns: list[str]) -> None:
    assert is_named(split_url(url), patterns)


@pytest.mark.parametrize(
    ("url", "patterns"),
    [
        ("https://example.com/", []),
        ("https://example.com:8443/", ["example.com"]),
        ("https://example.com/", ["example.com:8443"]),
        ("https://example.com/", ["*.example.com"]),
        ("https://evilexample.com/", ["*.example.com", "example.com"]),
        ("https://example.com.evil.org/", ["example.com", "*.example.com"]),
        ("http://127.0.0.1:6379/", ["*"]),
    ],
)
def test_host_that_is_not_named_is_refused(url: str, patterns: list[str]) -> None:
    assert not is_named(split_url(url), patterns)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "https://",
        "https://user:secret@example.com/",
        "https://example.com@evil.org/",
        "https://example.com/#part",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\r\nX: y",
        "https://ex\u00e4mple.com/",
        "http://[::1/",
        "http://[::1]evil.com/",
        "http://[fe80::1%25eth0]/",
        "https://example.com\\.evil.org/",
        "https://exam%70le.com/",
        "https://example.com./",
        "https://example..com/",
        "https://-example.com/",
        "https://example.com:/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://127.1/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://127.0.0.01/",
        "https://1.2.3.4.5/",
        "https://example.0x/",
        f"https://{'a' * 64}.com/",
        f"https://{'a.' * 127}com/",
    ],
)
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        split_url(url)
    assert refused.value.code == "webhook_url_invalid"


@pytest.mark.parametrize(
    "value", ["exa mple", "https://example.com", "a:b", "*.*", "host:", "[1:2]"]
)
def test_setting_that_names_no_host_is_refused_at_start(value: str) -> None:
    with pytest.raises(ValueError, match="webhook_hosts"):
        Settings(DATABASE_URL="postgresql://x", webhook_hosts=value)


def test_setting_lists_hosts() -> None:
    settings = Settings(
        DATABASE_URL="postgresql://x", webhook_hosts="a.org, *.b.org:8443,127.0.0.1:*"
    )
    assert settings.webhook_host_list == ["a.org", "*.b.org:8443", "127.0.0.1:*"]
