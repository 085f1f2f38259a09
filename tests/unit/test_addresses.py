"""What is let pass, every library reads alike; what is refused, nobody sees."""

from urllib.parse import quote, unquote

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils.url import url_to_parts
from psycopg.conninfo import conninfo_to_dict
from redis.connection import parse_url
from sqlalchemy.engine import make_url

from app.addresses import ADMIN_SCHEMES, check_address
from app.queues.address import redis_py_url
from app.queues.celery import kombu_url

#: Stand on both sides of what a password holds.
CANARIES = ("w0rdone", "w0rdtwo")
REDIS = (
    "redis://:{}@host:6379/0",
    "rediss://user:{}@host/1?ssl_ca_certs=/etc/ca.pem",
    "redis://:{}@[::1]:6379/0",
    "redis://:12{}@host:1",
    "redis://host?password={}",
    "redis://host/0?ssl=a&password={}",
    "redis://host/0?password={}&ssl=a",
    "redis+socket://:{}@/run/valkey.sock",
    "unix://:{}@/run/valkey.sock?db=1",
)
DATABASE = (
    "postgresql://user:{}@host:5432/darkroom",
    "postgresql+psycopg://user:{}@host",
    "postgresql://user:{}@[::1]:5432/darkroom?sslmode=verify-full",
    "postgresql://user:12{}@one,two/darkroom?target_session_attrs=any",
    "postgresql://user@/darkroom?host=/run/postgresql&password={}",
    "postgresql://host/darkroom?password={}&sslmode=require",
)
GOOD = (
    "redis://",
    "redis://127.0.0.1:6379/0",
    "redis://valkey",
    "redis://:a:b!$&'()*+,;=~@valkey_1.local:6379/",
    "redis:///3",
    "rediss://darkroom:PASSWORD@redis.example.com:6379/0?ssl_ca_certs=/etc/ssl/redis-ca.pem",
    "redis+socket:///run/valkey.sock?virtual_host=1",
    "unix:///run/valkey%20one.sock",
    "postgresql://x",
    "postgresql:///darkroom?host=/run/postgresql",
    "postgresql://u:p%40%2F%3F%23%5B%5D%25@h:5432/db",
    "postgresql://u:p@/db",
    "postgresql://h/db?password=abc%3D%3D",
)
passwords = st.text(alphabet="@:/?#[]%&=+ !$'\"\\\n0a9_-.,~\u00e9\u2100", max_size=5)


def read_redis(address: str) -> set[str]:
    """The passwords that those find who read an address of Redis."""
    parts = url_to_parts(kombu_url(address))
    mine = parse_url(redis_py_url(address))
    return {mine["password"], parts.password or parts.query["password"]}


def read_database(address: str) -> set[str]:
    """The passwords that those find who read an address of PostgreSQL."""
    parts = make_url(address)
    found = conninfo_to_dict(address.replace("+psycopg", "", 1))
    return {str(found["password"]), str(parts.password or parts.query["password"])}


def shows(error: Exception) -> bool:
    """Whether an error holds a piece of the password."""
    return any(canary in f"{error} {error!r}" for canary in CANARIES)


@settings(max_examples=300)
@given(shape=st.sampled_from([*REDIS, *DATABASE]), inner=passwords)
def test_address_is_read_alike_by_everybody_or_refused_without_a_word_of_its_password(shape, inner):
    password = inner.join(CANARIES)
    address = shape.format(password)
    read = read_redis if shape in REDIS else read_database
    error: Exception | None = None
    found = set()
    try:
        check_address(address)
        found = read(address)
    except ValueError as refused:
        error = refused
    except psycopg.ProgrammingError as refused:
        # libpq alone takes no raw = in a value.
        error = refused
        assert "=" in inner
    if error is not None:
        assert not shows(error)
        return
    assert found == {unquote(shape.split("{}")[0].rpartition("12")[1] + password)}


@pytest.mark.parametrize("address", GOOD)
def test_address_that_serves_is_let_pass(address):
    check_address(address)


@pytest.mark.parametrize("shape", [shape for shape in (*REDIS, *DATABASE) if "}&" not in shape])
def test_password_of_any_signs_is_let_pass_and_read_where_it_is_encoded(shape):
    password = "p@ss:w/o?r#d[1]%&=+ é"
    address = shape.format(quote(password, safe=""))
    check_address(address)
    read = read_redis if shape in REDIS else read_database
    assert {found.removeprefix("12") for found in read(address)} == {password}


def test_superuser_may_be_named_in_the_short_way_of_libpq():
    check_address("postgres://postgres:word@host/postgres", ADMIN_SCHEMES)
