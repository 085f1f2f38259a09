"""Rates: too many requests are refused, keys are not guessed, and Redis may fail without harm."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from app.api import rates
from app.api.rates import AGAIN_SECONDS, PATIENCE_SECONDS, PREFIX, Rates
from app.db.session import Database
from app.errors import TooManyError
from app.ids import TENANT, new_id
from app.settings import Settings
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from tests.api_client import Api, make_app, make_key
from tests.clock import Clock
from tests.factories import make_tenant

#: What a request may wait for the counts, however ill Redis is.
ONCE_SECONDS = 1.0


@pytest.fixture
def store(valkey: LocalValkey) -> Iterator[Any]:
    """The Redis of the rates, without any of them in it."""
    with redis.Redis.from_url(valkey.client_url, decode_responses=True) as client:
        for key in client.scan_iter(f"{PREFIX}:*"):
            client.delete(key)
        yield client


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rates, "monotonic_seconds", clock)
    return clock


@pytest.fixture
def make_api(
    settings: Settings, objects: ObjectStore, database: Database, tenant_id: str, store: Any
) -> Callable[..., Api]:
    """The API under other limits, as this test's tenant; each a process of its own."""

    def make(**limits: Any) -> Api:
        app = make_app(settings.model_copy(update=limits), objects)
        return Api(app, make_key(database, settings, tenant_id))

    return make


def new_rates(url: str, *, requests: int = 5, failures: int = 3) -> Rates:
    return Rates(url, max_requests=requests, max_failures=failures)


def admitted(counts: Rates, name: str, times: int) -> int:
    """How many of so many requests of the tenant pass."""
    passed = 0
    for _ in range(times):
        try:
            counts.admit_request(name)
        except TooManyError:
            continue
        passed += 1
    return passed


def refused(answer: Any, limit: str) -> dict[str, Any]:
    """The problem of a request that came too soon."""
    assert answer.status_code == 429, answer.text
    assert answer.content_type == "application/problem+json"
    problem: dict[str, Any] = answer.json
    assert problem["code"] == "too_many_requests"
    assert problem["errors"][0]["pointer"] == limit
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return problem


def with_wrong_key(
    api: Api, address: str = "192.0.2.1", key: str = "dk_wrong", **headers: str
) -> Any:
    return Api(api.app, key)(
        "GET", "/v1/jobs", headers=headers, environ_overrides={"REMOTE_ADDR": address}
    )


def test_tenant_over_its_rate_is_refused_and_others_are_not(
    make_api: Any, database: Database, settings: Settings
) -> None:
    api = make_api(max_requests_per_minute=3)
    assert [api("GET", "/v1/jobs").status_code for _ in range(3)] == [200] * 3
    refused(api("GET", "/v1/jobs"), "max_requests_per_minute")
    # Another key of the tenant is no way past.
    other_key = Api(api.app, make_key(database, settings, _tenant_of(api)))
    refused(other_key("GET", "/v1/jobs"), "max_requests_per_minute")
    other = Api(api.app, make_key(database, settings, make_tenant(database)))
    assert other("GET", "/v1/jobs").status_code == 200


def _tenant_of(api: Api) -> str:
    keys = api.app.extensions["darkroom"].keys
    found = {principal.tenant_id for _, principal in keys._known.values()}
    assert len(found) == 1
    return str(found.pop())


def test_what_needs_no_key_has_no_rate(make_api: Any) -> None:
    api = make_api(max_requests_per_minute=1, max_failed_authentications_per_minute=1)
    for path in ("/livez", "/metrics", "/v1/openapi.json", "/livez", "/metrics"):
        assert api.app.test_client().get(path).status_code == 200


def test_processes_count_together(make_api: Any) -> None:
    one, other = make_api(max_requests_per_minute=4), make_api(max_requests_per_minute=4)
    statuses = [api("GET", "/v1/jobs").status_code for api in (one, other) * 3]
    assert statuses == [200] * 4 + [429] * 2


def test_counts_in_redis_have_a_prefix_and_an_end(make_api: Any, store: Any) -> None:
    before = set(store.keys("*"))
    api = make_api(max_failed_authentications_per_minute=1)
    api("GET", "/v1/jobs")
    for _ in range(3):
        with_wrong_key(api)
    made = set(store.keys("*")) - before
    assert len(made) == 2
    for key in made:
        assert key.startswith(f"{PREFIX}:")
        assert 0 < store.ttl(key) <= 60


def test_keys_are_not_guessed_from_one_address(
    make_api: Any, database: Database, settings: Settings, tenant_id: str
) -> None:
    api = make_api(max_failed_authentications_per_minute=3)
    assert api("GET", "/v1/jobs", environ_overrides={"REMOTE_ADDR": "192.0.2.1"}).status_code == 200
    assert [with_wrong_key(api).status_code for _ in range(3)] == [401] * 3
    refused(with_wrong_key(api), "max_failed_authentications_per_minute")
    # Not even the right guess is looked at any more,
    fresh = make_key(database, settings, tenant_id)
    refused(with_wrong_key(api, key=fresh), "max_failed_authentications_per_minute")
    # nor is a request without any key; but who has shown a good one goes on.
    refused(with_wrong_key(api, key=""), "max_failed_authentications_per_minute")
    assert with_wrong_key(api, key=api.key).status_code == 200
    assert with_wrong_key(api, address="192.0.2.2").status_code == 401
    assert with_wrong_key(api, address="192.0.2.2", key=fresh).status_code == 200


def test_address_is_refused_by_other_processes_after_one_more_try(make_api: Any) -> None:
    one, other = (make_api(max_failed_authentications_per_minute=3) for _ in range(2))
    assert [with_wrong_key(one).status_code for _ in range(4)] == [401] * 3 + [429]
    assert with_wrong_key(other).status_code == 429


def test_revoked_key_is_a_strangers_again(make_api: Any) -> None:
    api = make_api(max_failed_authentications_per_minute=2)
    made = api("POST", "/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}).json
    assert with_wrong_key(api, key=made["text"]).status_code == 200
    api("DELETE", f"/v1/keys/{made['id']}")
    statuses = [with_wrong_key(api, key=made["text"]).status_code for _ in range(4)]
    assert statuses == [401, 401, 429, 429]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, "no address", True),
    ],
)
def test_whoever_has_one_network_counts_as_one(
    valkey: LocalValkey, store: Any, one: str | None, other: str | None, same: bool
) -> None:
    counts = new_rates(valkey.url, failures=1)
    counts.note_failure(one)
    with pytest.raises(TooManyError):
        counts.note_failure(one)
    if same:
        with pytest.raises(TooManyError):
            counts.admit_stranger(other)
    else:
        counts.admit_stranger(other)


def test_forwarded_address_is_believed_from_trusted_proxies_alone(make_api: Any) -> None:
    plain = make_api(max_failed_authentications_per_minute=2)
    spoofed = [f"198.51.100.{number}" for number in range(4)]
    statuses = [with_wrong_key(plain, **{"X-Forwarded-For": each}).status_code for each in spoofed]
    assert statuses == [401, 401, 429, 429]
    behind = make_api(max_failed_authentications_per_minute=2, trusted_proxies=1)
    proxy = "203.0.113.9"

    def sent(*forwarded: str) -> int:
        header = {"X-Forwarded-For": ", ".join(forwarded)}
        status: int = with_wrong_key(behind, address=proxy, **header).status_code
        return status

    # What a client writes itself stands before what the proxy adds.
    assert [sent(each, "192.0.2.77") for each in spoofed] == [401, 401, 429, 429]
    assert sent("192.0.2.78") == 401


class Silent:
    """A server that takes connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def test_redis_that_is_away_leaves_each_process_its_own_limit(make_api: Any) -> None:
    api = make_api(
        redis_url=_secret("redis://127.0.0.1:1/0"),
        max_requests_per_minute=3,
        max_failed_authentications_per_minute=2,
    )
    assert [api("GET", "/v1/jobs").status_code for _ in range(5)] == [200] * 3 + [429] * 2
    assert [with_wrong_key(api).status_code for _ in range(4)] == [401] * 2 + [429] * 2


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)


def test_redis_that_is_silent_holds_a_request_up_once_and_not_for_long(silent: Silent) -> None:
    counts, name = new_rates(silent.url), new_id(TENANT)
    began = time.monotonic()
    assert admitted(counts, name, 1) == 1
    first = time.monotonic()
    assert first - began < ONCE_SECONDS
    assert admitted(counts, name, 7) == 4
    assert time.monotonic() - first < PATIENCE_SECONDS


def test_silence_holds_up_one_request_at_a_time(silent: Silent, clock: Clock) -> None:
    counts, name = new_rates(silent.url, failures=1000), new_id(TENANT)
    admitted(counts, name, 1)
    clock.now += AGAIN_SECONDS
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: _seconds(counts, name), range(8)))
    assert time.monotonic() - began < ONCE_SECONDS
    assert sum(wait > PATIENCE_SECONDS / 2 for wait in waits) == 1


def _seconds(counts: Rates, name: str) -> float:
    began = time.monotonic()
    counts.note_failure(None)
    return time.monotonic() - began


def test_redis_that_is_full_is_no_error_and_no_open_door(
    valkey: LocalValkey, store: Any, make_api: Any
) -> None:
    api = make_api(max_requests_per_minute=3)
    store.config_set("maxmemory", "1")
    try:
        statuses = [api("GET", "/v1/jobs").status_code for _ in range(5)]
    finally:
        store.config_set("maxmemory", "0")
    assert statuses == [200] * 3 + [429] * 2
    assert list(store.scan_iter(f"{PREFIX}:*")) == []


def test_return_of_redis_is_noticed(valkey: LocalValkey, store: Any, clock: Clock) -> None:
    counts, name = new_rates(valkey.url), new_id(TENANT)
    store.config_set("maxmemory", "1")
    try:
        assert admitted(counts, name, 3) == 3
    finally:
        store.config_set("maxmemory", "0")
    assert admitted(counts, name, 1) == 1
    assert list(store.scan_iter(f"{PREFIX}:*")) == []
    clock.now += AGAIN_SECONDS
    assert admitted(counts, name, 1) == 1
    assert len(list(store.scan_iter(f"{PREFIX}:*"))) == 1


def test_large_limit_asks_redis_seldom_and_is_kept_all_the_same(
    valkey: LocalValkey, store: Any
) -> None:
    counts, name = new_rates(valkey.url, requests=20_000), new_id(TENANT)
    before = store.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    assert admitted(counts, name, 20_500) == 20_000
    asked = store.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    # One for each draw of twenty, and one that was refused: after it nobody asks.
    assert asked == 1001


def test_what_is_remembered_is_bounded(
    valkey: LocalValkey, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "_MOST", 3)
    counts = new_rates(valkey.url, requests=5000, failures=1)
    for number in range(10):
        counts.admit_request(f"ten_{number}")
        counts.note_failure(f"192.0.2.{number}")
        with pytest.raises(TooManyError):
            counts.note_failure(f"192.0.2.{number}")
    assert len(counts._drawn) <= 3
    assert len(counts._refused) <= 3
