"""The form of a webhook's url, and the patterns by which an operator names hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import urlsplit

from app.errors import InvalidInputError

DEFAULT_PORT = {"http": 80, "https": 443}
# Stricter than urlsplit, which lets backslashes, zones, percent signs and words behind a
# bracket pass: whatever two parsers may read differently is refused.
_NETLOC = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# What the system's resolver takes for a number, such as 0x7f.1, 017700000001 or 127.1.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True)
class Url:
    """A url in its parts."""

    scheme: str
    #: In small letters; an IPv6 address without brackets.
    host: str
    port: int
    #: Path and query.
    target: str
    #: Whether the host is an IP address and no name.
    is_address: bool


def split_url(url: str) -> Url:
    """The parts of an http or https url without user, password or fragment.

    Raises:
        InvalidInputError: ``webhook_url_invalid``.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise invalid_url(
            "it has characters that must be percent-encoded, or a name that must be "
            "written in its xn-- form"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise invalid_url(str(error)) from None
    if parts.scheme not in DEFAULT_PORT or not parts.netloc:
        raise invalid_url("it must begin with https:// or http:// and name a host")
    if "@" in parts.netloc:
        raise invalid_url("it must hold no user or password")
    if "#" in url:
        raise invalid_url("it must hold no fragment")
    found = _NETLOC.fullmatch(parts.netloc)
    if found is None:
        raise invalid_url("its host must be a name or an address, with or without a port")
    port = int(found[3]) if found[3] else DEFAULT_PORT[parts.scheme]
    if not 0 < port < 65536:
        raise invalid_url("its port must be a number from 1 to 65535")
    address = _six(found[1]) if found[1] else _four(found[2])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(
        parts.scheme, address or _name(found[2]), port, target, is_address=address is not None
    )


def is_named(url: Url, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns names the url's host and port.

    They are ``host``, ``*.domain``, ``host:port`` or ``host:*``; without a port the scheme's own
    is meant.
    """
    return any(_matches(url, *split_pattern(pattern)) for pattern in patterns)


def split_pattern(pattern: str) -> tuple[str, str]:
    """Host and port of a pattern, an IPv6 address without brackets, no port as ``""``."""
    host, colon, port = pattern.rpartition(":")
    # Without a port; the colons of a bare IPv6 address stand in brackets.
    if not colon or "]" in port:
        host, port = pattern, ""
    host = host.strip("[]").lower()
    return (str(IPv6Address(host)) if ":" in host else host), port


def invalid_url(why: str) -> InvalidInputError:
    """The error of a url that no webhook may have."""
    return InvalidInputError(f"the webhook's url is not valid: {why}", code="webhook_url_invalid")


def _matches(url: Url, host: str, port: str) -> bool:
    if not (host in ("*", url.host) or (host.startswith("*.") and url.host.endswith(host[1:]))):
        return False
    if port == "*":
        return True
    return url.port == (int(port) if port else DEFAULT_PORT[url.scheme])


def _six(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except AddressValueError as error:
        raise invalid_url(str(error)) from None


def _four(text: str) -> str | None:
    """The IPv4 address that a resolver would read, where it is written plainly; None: a name."""
    if not _NUMBER.fullmatch(text.rpartition(".")[2]):
        return None
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise invalid_url("an IPv4 address is written as four decimal numbers") from None


def _name(text: str) -> str:
    if len(text) > 253 or not all(map(_LABEL.fullmatch, text.split("."))):
        raise invalid_url("its host is no name: letters, digits and hyphens between dots")
    return text.lower()
