"""Webhooks lead out to the public internet, and never into our own networks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from time import monotonic
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from app.errors import InvalidInputError
from app.settings import Settings
from app.webhooks import resolve
from app.webhooks.guard import Guard
from app.webhooks.resolve import Slots, look_up
from app.webhooks.send import Outcome, post
from tests.receiver import Receiver, raw_server
from tests.security.tls import Authority
from tests.webhooks import unchecked

NAME = "hooks.example"
TENANT = "ten_a"
PUBLIC = "93.184.216.34"
#: What a name may lead to that is none of the public internet, or leads out of it again.
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
#: How a url may write such an address without a name.
SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "0x7f000001",
    "0177.0.0.1",
    "017700000001",
    "2130706433",
    "127.0.0.1.",
    "127.000.000.001",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[fd00::1]",
    "[fe80::1%25eth0]",
    "169.254.169.254",
    "\uff11\uff12\uff17.0.0.1",
    "127\u3002\u30020.1",
    "\u2460\u2461\u2466.0.0.1",
    "%31%32%37.0.0.1",
    "user@127.0.0.1",
    "example.com@127.0.0.1",
    "example.com\\@127.0.0.1",
    "127.0.0.1\\.example.com",
    "127.0.0.1%00.example.com",
    "127.0.0.1\t",
]


def leads_to(*addresses: str) -> Callable[[str, str], tuple[str, ...]]:
    """A resolver with one answer."""
    return lambda _name, _tenant_id: addresses


def refusal(guard: Guard, url: str) -> InvalidInputError:
    """Why the guard lets it not pass."""
    with pytest.raises(InvalidInputError) as refused:
        guard.check(url, TENANT)
    return refused.value


class Resolver:
    """A resolver whose answer changes each time that it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in answer]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """What this whole process asks for addresses; the same answer for ever until told others."""
    resolver = Resolver([PUBLIC])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_address_passes_and_is_what_is_connected_to(address: str) -> None:
    target = Guard(look_up=leads_to(address)).check(f"https://{NAME}/hook", TENANT)
    assert target.addresses == (address,)


@pytest.mark.parametrize("address", PRIVATE)
def test_name_that_leads_inside_is_refused(address: str) -> None:
    guard = Guard(look_up=leads_to(address))
    assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"


@pytest.mark.parametrize("others", [(PUBLIC,), ("2606:4700::1111", PUBLIC)])
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:10.0.0.1"])
def test_one_address_inside_among_public_ones_is_enough(
    address: str, others: tuple[str, ...]
) -> None:
    for answer in ((*others, address), (address, *others)):
        guard = Guard(look_up=leads_to(*answer))
        assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_an_address_inside_passes(host: str, resolver: Resolver) -> None:
    resolver.answers = [["127.0.0.1"]]
    error = refusal(Guard(), f"https://{host}/")
    assert error.code in ("webhook_url_invalid", "webhook_address_not_allowed")
    # The resolver is not even asked what these might mean.
    assert resolver.asked == []


@pytest.mark.parametrize("host", ["localhost", "metadata", "metadata.google.internal", "valkey"])
def test_names_of_our_own_lead_inside(host: str, resolver: Resolver) -> None:
    resolver.answers = [["169.254.169.254"]]
    assert refusal(Guard(), f"https://{host}/").code == "webhook_address_not_allowed"


@pytest.mark.parametrize("port", [22, 25, 80, 5432, 6379, 9200, 1, 65535])
def test_only_ports_of_receivers_are_asked(port: int) -> None:
    guard = Guard(look_up=leads_to(PUBLIC))
    assert refusal(guard, f"https://{NAME}:{port}/").code == "webhook_url_invalid"
    for open_port in (443, 8443):
        assert guard.check(f"https://{NAME}:{open_port}/", TENANT).parts.port == open_port


@pytest.mark.parametrize("port", [22, 25, 5432, 6379, 9200, 11211])
def test_no_list_of_hosts_opens_ports_of_databases_and_mail(port: int) -> None:
    guard = Guard(hosts=(f"{NAME}:*", f"{NAME}:{port}"), look_up=leads_to(PUBLIC))
    assert guard.check(f"https://{NAME}:9999/", TENANT).parts.port == 9999
    assert refusal(guard, f"https://{NAME}:{port}/").code == "webhook_url_invalid"


def test_http_is_for_hosts_that_the_operator_names() -> None:
    look = leads_to(PUBLIC)
    url = f"http://{NAME}/"
    assert refusal(Guard(look_up=look), url).code == "webhook_url_invalid"
    assert refusal(Guard(hosts=("*:*",), look_up=look), url).code == "webhook_url_invalid"
    assert refusal(Guard(hosts=("other",), look_up=look), url).code == "webhook_host_not_allowed"
    assert Guard(hosts=(NAME,), look_up=look).check(url, TENANT).parts.scheme == "http"
    assert Guard(hosts=("*.example",), look_up=look).check(url, TENANT).parts.scheme == "http"


def test_named_host_still_may_not_lead_inside() -> None:
    guard = Guard(hosts=(NAME,), look_up=leads_to("10.1.2.3"))
    assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"


def test_private_network_that_is_allowed_opens_itself_and_no_other() -> None:
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd12::/16"))
    for address in ("10.1.2.3", "fd12::1", "::ffff:10.1.2.3"):
        guard = Guard(private_networks=allowed, look_up=leads_to(address))
        assert guard.check(f"https://{NAME}/", TENANT).addresses == (address,)
    for address in ("10.2.0.1", "127.0.0.1", "fd13::1"):
        guard = Guard(private_networks=allowed, look_up=leads_to(address))
        assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"


def test_address_that_the_operator_wrote_down_opens_itself_and_no_name() -> None:
    guard = Guard(hosts=("10.0.0.5", "*"), look_up=leads_to("10.0.0.5"))
    assert guard.check("https://10.0.0.5/", TENANT).addresses == ("10.0.0.5",)
    assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"
    assert refusal(guard, "https://10.0.0.6/").code == "webhook_address_not_allowed"


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "0.0.0.0",
        "fd00:ec2::254",
        "fd20:ce::254",
    ],
)
def test_addresses_that_hand_out_credentials_are_never_asked(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    networks = tuple(map(ip_network, ("0.0.0.0/1", "128.0.0.0/1", "fd00::/8")))
    guard = Guard(hosts=(host, "*"), private_networks=networks, look_up=leads_to(address))
    assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"
    assert refusal(guard, f"https://{host}/").code == "webhook_address_not_allowed"


def test_client_learns_nothing_of_our_names_and_addresses_and_the_operator_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: str) -> tuple[str, ...]:
        raise socket.gaierror("Name or service not known")

    log = CapturingLogger()
    monkeypatch.setattr("app.webhooks.guard.log", log)
    told = [
        refusal(Guard(look_up=look), f"https://{NAME}/").detail
        for look in (leads_to("10.1.2.3"), leads_to("127.0.0.1"), leads_to(), fail)
    ]
    assert len(set(told)) == 1
    assert "10.1.2.3" in str(log.calls[0])
    assert "not known" in str(log.calls[-1])


def test_name_is_asked_for_once_a_delivery_and_its_later_answer_changes_nothing(
    resolver: Resolver,
) -> None:
    guard = Guard(hosts=(f"{NAME}:*",), private_networks=(ip_network("127.0.0.1/32"),))
    with Receiver() as meant, Receiver(meant.port, host="127.0.0.2") as inside:
        resolver.answers = [["127.0.0.1"], ["127.0.0.2"]]
        target = guard.check(f"http://{NAME}:{meant.port}/hook", TENANT)
        assert post(target, b"{}", {}).is_success
        assert resolver.asked == [NAME]
        (received,) = meant.received
        assert received.headers["host"] == f"{NAME}:{meant.port}"
        # The next delivery asks again, and is led elsewhere: it is refused.
        assert refusal(guard, target.url).code == "webhook_address_not_allowed"
        assert inside.received == []


def test_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over, hanging = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any, **__: Any) -> Any:
        hanging.release()
        over.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(resolve, "_slots", Slots(1, 1))
    guard = Guard(look_up=lambda *asked: look_up(*asked, seconds=0.1))
    try:
        assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"
        assert hanging.acquire(timeout=10)
        # Nor do those that hang pile up: the system is not asked while the places are taken.
        assert refusal(guard, f"https://{NAME}/").code == "webhook_address_not_allowed"
        assert not hanging.acquire(timeout=0.2)
    finally:
        over.set()


def test_names_of_one_tenant_that_hang_leave_places_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()

    def ask(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("slow"):
            over.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    slots = Slots(resolve._MOST, resolve._MOST_EACH)
    monkeypatch.setattr(resolve, "_slots", slots)
    names = [f"slow{number}.example" for number in range(resolve._MOST + 1)]
    try:
        # Two tenants, each with as many names as there are places for all.
        for tenant_id in ("ten_a", "ten_b"):
            for name in names:
                with pytest.raises(TimeoutError):
                    look_up(name, tenant_id, seconds=0.001)
        assert slots._held == {"ten_a": resolve._MOST_EACH, "ten_b": resolve._MOST_EACH}
        assert look_up("good.example", "ten_c") == (PUBLIC,)
        # Who waits for a place of its own share is served when one is free.
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(look_up, "good.example", "ten_a", seconds=60)
            over.set()
            assert waiting.result(60) == (PUBLIC,)
    finally:
        over.set()


def test_certificate_must_be_for_the_name_whatever_address_is_connected_to(
    authority: Authority, resolver: Resolver
) -> None:
    with Receiver(tls=authority.serve(NAME)) as receiver:
        target = unchecked(f"https://{NAME}:{receiver.port}/hook", "127.0.0.1")
        assert post(target, b"{}", {}, tls=authority.trust()) == Outcome(200)
        (received,) = receiver.received
        assert received.headers["host"] == f"{NAME}:{receiver.port}"
        assert receiver.server_names == [NAME]
    assert resolver.asked == []


@pytest.mark.parametrize("name", ["other.example", "127.0.0.1"])
def test_certificate_for_another_name_is_refused(authority: Authority, name: str) -> None:
    with Receiver(tls=authority.serve(name)) as receiver:
        target = unchecked(f"https://{NAME}:{receiver.port}/hook", "127.0.0.1")
        outcome = post(target, b"{}", {}, tls=authority.trust())
    assert outcome == Outcome(error="no TLS connection that can be trusted came about")
    assert receiver.received == []


def test_certificate_of_an_unknown_authority_is_refused(authority: Authority) -> None:
    with Receiver(tls=authority.serve(NAME)) as receiver:
        target = unchecked(f"https://{NAME}:{receiver.port}/hook", "127.0.0.1")
        outcome = post(target, b"{}", {})
    assert outcome == Outcome(error="no TLS connection that can be trusted came about")
    assert receiver.received == []


def test_redirect_leads_nowhere() -> None:
    with Receiver() as inside, Receiver() as receiver:
        receiver.headers = {"Location": inside.url}
        for status in (301, 302, 303, 307, 308):
            receiver.status = status
            outcome = post(unchecked(receiver.url, "127.0.0.1"), b"{}", {})
            assert outcome.status == status
            assert not outcome.is_success
        assert inside.received == []


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "piece",
    [b"x: " + b"y" * 5000 + b"\r\n", b"y" * 5000, b"\r\nHTTP/1.1 100 Continue\r\n" * 200],
    ids=["many", "one", "continue"],
)
def test_endless_headers_are_not_listened_to(piece: bytes) -> None:
    # More than the system keeps in its buffers: the server still sends as it is cut off.
    with raw_server(b"HTTP/1.1 100 Continue\r\nx: ", *[piece] * 5000) as url:
        outcome = post(unchecked(url, "127.0.0.1"), b"{}", {})
    assert outcome == Outcome(error="the receiver's headers were too long")


def test_no_more_is_read_of_a_body_than_came_along_with_the_headers() -> None:
    size = 64 * 1024 * 1024
    head = HEAD + f"Content-Length: {size}\r\n\r\n".encode()
    with raw_server(head, *[b"x" * 65536] * (size // 65536)) as url:
        assert post(unchecked(url, "127.0.0.1"), b"{}", {}) == Outcome(200)


def test_handshake_that_drips_is_cut_off_at_the_total_time() -> None:
    # The beginning of a TLS record that would be long.
    record = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
    with raw_server(record, *[b"x"] * 600, pause_seconds=0.05) as url:
        target = unchecked(url.replace("http:", "https:"), "127.0.0.1")
        began = monotonic()
        outcome = post(target, b"{}", {}, total_seconds=0.5)
    assert outcome == Outcome(error="the receiver did not answer in time")
    assert monotonic() - began < 10


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_proxy_of_the_environment_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        monkeypatch.setenv(variable, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert post(unchecked(receiver.url, "127.0.0.1"), b"{}", {}) == Outcome(200)
    assert (len(receiver.received), proxy.received) == (1, [])


def test_next_address_is_tried_where_one_takes_no_connection() -> None:
    with Receiver() as receiver:
        target = unchecked(receiver.url, "127.0.0.9", "127.0.0.1")
        assert post(target, b"{}", {}) == Outcome(200)


@pytest.mark.parametrize(
    "value", ["10.1.2.3/8", "0.0.0.0/0", "::/0", "hooks.example", "10.0.0.0/99", "10.0.0.0/8 ::1"]
)
def test_setting_that_names_no_network_is_refused_at_start(value: str) -> None:
    with pytest.raises(ValueError, match="webhook_private_networks"):
        Settings(DATABASE_URL="postgresql://x", webhook_private_networks=value)


def test_settings_make_the_guard() -> None:
    guard = Guard.from_settings(
        Settings(
            DATABASE_URL="postgresql://x",
            webhooks="on",
            webhook_hosts="a.example, *.b.example:8443",
            webhook_private_networks="10.1.0.0/16,fd12::/16",
        )
    )
    assert guard.hosts == ("a.example", "*.b.example:8443")
    assert guard.private_networks == (ip_network("10.1.0.0/16"), ip_network("fd12::/16"))
    off = Guard.from_settings(Settings(DATABASE_URL="postgresql://x", webhooks="off"))
    assert refusal(off, f"https://{NAME}/").code == "webhooks_off"
