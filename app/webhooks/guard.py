"""Keeps webhooks out of our own networks: a client chooses the url, and this service asks it.

A url passes in two steps. Its form, host and port are judged by themselves. Then its name is
resolved, once, and every address in the answer must be one that webhooks may go to. What comes
out, a :class:`Target`, holds these addresses: who connects to one of them, and never to the name,
is not led elsewhere by an answer that changes in between (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from app.errors import InvalidInputError
from app.log import get_logger
from app.settings import Settings
from app.webhooks.addresses import Network, is_allowed
from app.webhooks.hosts import Url, invalid_url, is_named, split_pattern, split_url
from app.webhooks.resolve import look_up

log = get_logger(__name__)

#: Where receivers listen, as long as the operator names no hosts with other ports.
_PORTS = frozenset({443, 8443})
#: Services that speak other words than HTTP, or hand out their data to whoever asks: refused even
#: where a pattern such as ``host:*`` would let them pass.
_NEVER_PORTS = frozenset(
    {21, 22, 23, 25, 53, 110, 111, 135, 139, 143, 389, 445, 465, 514, 587, 636, 873, 993, 995}
    | {1433, 1521, 2049, 2375, 2379, 2380, 3306, 3389, 5432, 5672, 5984, 6379, 9042, 9092, 9200}
    | {9300, 10250, 11211, 15672, 16379, 26379, 27017}
)


@dataclass(frozen=True, slots=True)
class Target:
    """A url that passed, and the checked addresses that may be connected to; none is resolved."""

    url: str
    parts: Url
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """What the operator lets webhooks reach."""

    #: Patterns of hosts; where there are any, webhooks go to no other.
    hosts: tuple[str, ...] = ()
    #: Networks that may be reached although they are not public.
    private_networks: tuple[Network, ...] = ()
    is_on: bool = True
    #: Takes a host, and the tenant of whose share of look-ups it is.
    look_up: Callable[[str, str], tuple[str, ...]] = look_up

    @classmethod
    def from_settings(cls, settings: Settings) -> Guard:
        """The guard as the settings have it."""
        return cls(
            tuple(settings.webhook_host_list),
            tuple(map(ip_network, settings.webhook_private_network_list)),
            settings.webhooks,
        )

    def check(self, url: str, tenant_id: str) -> Target:
        """Let a tenant's url pass that may be asked now; resolves its name, in seconds at most.

        Raises:
            InvalidInputError: as :meth:`check_url`, or ``webhook_address_not_allowed``.
        """
        parts = self.check_url(url)
        if parts.is_address and any(split_pattern(each)[0] == parts.host for each in self.hosts):
            # The operator wrote this very address down, so it need not be public.
            allowed: tuple[Network, ...] = (*self.private_networks, ip_network(parts.host))
        else:
            allowed = self.private_networks
        try:
            addresses = (parts.host,) if parts.is_address else self.look_up(parts.host, tenant_id)
        except OSError as error:
            raise self._refused(parts, f"not found: {error}") from None
        # All of them: an answer that holds one of ours too is an attempt, or a mistake.
        for address in addresses:
            if not is_allowed(address, allowed):
                raise self._refused(parts, f"{address} is not allowed")
        if not addresses:
            raise self._refused(parts, "no address")
        return Target(url, parts, addresses)

    def check_url(self, url: str) -> Url:
        """Let a url pass by its form alone.

        Raises:
            InvalidInputError: ``webhooks_off``, ``webhook_url_invalid`` or
                ``webhook_host_not_allowed``.
        """
        if not self.is_on:
            raise InvalidInputError(
                "webhooks are off here: the operator has set DARKROOM_WEBHOOKS to off",
                code="webhooks_off",
            )
        parts = split_url(url)
        if self.hosts and not is_named(parts, self.hosts):
            raise InvalidInputError(
                f"webhooks to {parts.host}, port {parts.port}, are not allowed here: the operator "
                "must name them in DARKROOM_WEBHOOK_HOSTS",
                code="webhook_host_not_allowed",
            )
        if parts.scheme == "http" and not is_named(parts, filter(_is_narrow, self.hosts)):
            raise invalid_url(
                "it must begin with https://, so that nobody reads or changes on the way what is "
                "sent; http:// is for hosts that the operator names in DARKROOM_WEBHOOK_HOSTS"
            )
        if parts.port in _NEVER_PORTS or not (self.hosts or parts.port in _PORTS):
            raise invalid_url(
                f"webhooks do not go to port {parts.port}: listen on 443 or 8443, or on another "
                "that the operator names in DARKROOM_WEBHOOK_HOSTS"
            )
        return parts

    @staticmethod
    def _refused(parts: Url, why: str) -> InvalidInputError:
        # Why is for the operator: a client could ask for the names and addresses of our networks.
        log.warning("webhook_address_refused", host=parts.host, why=why)
        return InvalidInputError(
            f"{parts.host} leads to no address that webhooks may go to: it must be found, and all "
            "its addresses must be public ones, or in DARKROOM_WEBHOOK_PRIVATE_NETWORKS",
            code="webhook_address_not_allowed",
        )


def _is_narrow(pattern: str) -> bool:
    """Whether a pattern names hosts, and not simply all of them."""
    return split_pattern(pattern)[0] != "*"
