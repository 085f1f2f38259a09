"""Which addresses may be told of events: only hosts that the operator has named.

A webhook makes this service send requests to an address of a client's choosing. Until there is
a guard that keeps it out of our own networks, the list of hosts is that guard; empty means none.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from app.errors import InvalidInputError

_DEFAULT_PORT = {"http": 80, "https": 443}


def check_url(url: str, allowed: Sequence[str]) -> None:
    """Let an address pass that is well formed and whose host is among ``allowed``.

    ``allowed`` are patterns as in the setting: ``host``, ``*.domain``, ``host:port``, ``host:*``.
    Without a port the scheme's own is meant.

    Raises:
        InvalidInputError: ``webhook_url_invalid`` or ``webhook_host_not_allowed``.
    """
    parts = split_url(url)
    if not any(_matches(parts, pattern) for pattern in allowed):
        raise InvalidInputError(
            f"webhooks to {parts.netloc} are not allowed here: the operator must name the host in "
            "DARKROOM_WEBHOOK_HOSTS"
            + ("" if allowed else ", which is empty: webhooks are off until it is set"),
            code="webhook_host_not_allowed",
        )


def split_url(url: str) -> SplitResult:
    """The parts of an http or https address without user, password or fragment.

    Raises:
        InvalidInputError: ``webhook_url_invalid``.
    """
    try:
        parts = urlsplit(url)
        port_of(parts)
    except ValueError as error:
        raise _invalid(str(error)) from None
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid("it has characters that must be percent-encoded")
    if parts.scheme not in _DEFAULT_PORT or not parts.hostname:
        raise _invalid("it must begin with https:// or http:// and name a host")
    if "@" in parts.netloc:
        raise _invalid("it must hold no user or password")
    if "#" in url:
        raise _invalid("it must hold no fragment")
    return parts


def port_of(parts: SplitResult) -> int:
    """The port that an address leads to."""
    return parts.port or _DEFAULT_PORT.get(parts.scheme, 0)


def _matches(parts: SplitResult, pattern: str) -> bool:
    host, _, port = pattern.rpartition(":")
    # Without a port; the colons of a bare IPv6 address stand in brackets.
    if not host or "]" in port:
        host, port = pattern, ""
    host = host.strip("[]").lower()
    name = parts.hostname or ""
    if not (host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:]))):
        return False
    if port == "*":
        return True
    return port_of(parts) == (int(port) if port else _DEFAULT_PORT[parts.scheme])


def _invalid(why: str) -> InvalidInputError:
    return InvalidInputError(f"the webhook's url is not valid: {why}", code="webhook_url_invalid")
