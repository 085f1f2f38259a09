"""The addresses of PostgreSQL and Redis, refused before anything else reads them.

libpq, SQLAlchemy, redis-py and kombu part an address in different places where a password holds
signs that are not percent-encoded, and their errors quote what they could not read, which is the
password or a piece of it. So an address must be one that all of them read alike. What is said of
one that is not holds no piece of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes, urlsplit

DATABASE_SCHEMES = ("postgresql", "postgresql+psycopg")
#: psycopg alone reads the superuser's.
ADMIN_SCHEMES = ("postgresql", "postgres")
REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "unix")
ALL_SCHEMES = (*DATABASE_SCHEMES, *ADMIN_SCHEMES, *REDIS_SCHEMES)
_SOCKET_SCHEMES = ("redis+socket", "unix")

_ENCODE = (
    "in user and password write / as %2F, ? as %3F, # as %23, @ as %40, [ as %5B, ] as %5D and "
    "% as %25"
)
_BLANK = re.compile(r"[\s\x00-\x1f\x7f]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
#: Several with commas, a folder of sockets percent-encoded; an IPv6 address has its brackets.
_HOST = re.compile(r"[\w.~%,-]*|\[[0-9A-Fa-f:.]+(%25[\w.-]+)?\]")
_REDIS_PATH = re.compile(r"/?[0-9]*")
_PARAMETER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def check_address(address: str, schemes: Sequence[str] = ALL_SCHEMES) -> None:
    """Let an address pass that every library reads alike.

    Raises:
        ValueError: what is wrong with it, in words that hold no part of it.
    """
    scheme, found, rest = address.partition("://")
    if not found or scheme not in schemes:
        known = ", ".join(f"{each}://" for each in schemes)
        raise ValueError(f"does not begin with one of {known}")
    if _BLANK.search(rest):
        raise ValueError("holds a space, a line break or a control character: a space is %20")
    if _BAD_PERCENT.search(rest):
        raise ValueError(f"holds a % without two hex digits behind it, or %00; {_ENCODE}")
    try:
        unquote_to_bytes(rest).decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 where it is percent-encoded") from None
    if "#" in rest:
        raise ValueError(f"holds a #; {_ENCODE}")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if authority.count("@") > 1 or "@" in rest[len(authority) :]:
        raise ValueError(f"holds an @ that does not part the password from the host; {_ENCODE}")
    login, has_login, place = authority.rpartition("@")
    if "[" in login or "]" in login:
        raise ValueError(f"holds a bracket in user or password; {_ENCODE}")
    if has_login and scheme in REDIS_SCHEMES and ":" not in login:
        raise ValueError("names a user and no password: a password alone is :PASSWORD@")
    _check_place(address, place, has_login=bool(has_login))
    path, _, query = rest[len(authority) :].partition("?")
    if scheme in _SOCKET_SCHEMES:
        if place or not path:
            raise ValueError(f"is no path of a socket: {scheme}:///run/valkey.sock")
    elif scheme in REDIS_SCHEMES and not _REDIS_PATH.fullmatch(path):
        raise ValueError("ends in no number of a database, such as /0, behind its host")
    _check_query(query)


def _check_place(address: str, place: str, *, has_login: bool) -> None:
    """Check host and port."""
    try:
        port = urlsplit(address).port
    except ValueError:
        raise ValueError(
            f"has no host and port that can be read: a port is a number up to 65535; {_ENCODE}"
        ) from None
    host = place
    if port is not None:
        host = place.rpartition(":")[0]
    elif place.endswith(":"):
        host = place[:-1]
    if port == 0 or not _HOST.fullmatch(host):
        raise ValueError(f"has no host and port that can be read; {_ENCODE}")
    if port is not None and not host and not has_login:
        # Somebody's password without the @ behind it, if it is of digits.
        raise ValueError("has a port and no host; a password ends with an @ before the host")


def _check_query(query: str) -> None:
    """Check that it is NAME=VALUE with ``&``, passwords last: a raw & would end them early."""
    if not query:
        return
    past_password = False
    for pair in query.split("&"):
        match = _PARAMETER.fullmatch(pair)
        if match is None:
            raise ValueError("is not NAME=VALUE behind its ?, with & between; write & as %26")
        is_password = "password" in match[1].lower()
        if past_password and not is_password:
            raise ValueError("has more behind password=: put that last, and write & in it as %26")
        if is_password and "+" in match[2]:
            raise ValueError("holds a + in password=, which some read as a space: write it as %2B")
        past_password |= is_password
