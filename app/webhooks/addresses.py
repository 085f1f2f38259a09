"""Which IP addresses a webhook may lead to: those of the public internet, and no others.

The standard library's ``is_global`` is the base. It takes multicast for global, looks into no
tunnel, and knows networks that were reserved later only in later versions of Python.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

#: Never asked, whatever the operator allows: an unspecified address means this machine, and at
#: link-local ones and the few behind them clouds hand out the machine's own credentials. One of
#: those, 168.63.129.16, is of a public network and yet answers inside of Azure alone.
_NEVER = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "169.254.0.0/16",
            "192.0.0.192/32",
            "168.63.129.16/32",
            "100.100.100.200/32",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/128",
            "fe80::/10",
            "fd00:ec2::254/128",
            "fd20:ce::254/128",
            "ff00::/8",
        ),
    )
)
#: The only global unicast addresses that were ever given out (RFC 4291, IANA).
_GIVEN_OUT = IPv6Network("2000::/3")
#: Taken for global by some versions of Python: 6to4 and its relays, whose tunnel may end
#: anywhere, Teredo, and what is kept for documentation.
_NOT_GLOBAL = tuple(map(ip_network, ("192.88.99.0/24", "2002::/16", "2001::/32", "3fff::/20")))
#: Written by DNS64 for hosts that have IPv4 only; the last 32 bits are that address (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def is_allowed(text: str, private_networks: Collection[Network] = ()) -> bool:
    """Whether webhooks may go to this address: a global one, or one of these networks."""
    address = _meant(ip_address(text))
    if _is_in(address, _NEVER):
        return False
    if _is_in(address, private_networks):
        return True
    if isinstance(address, IPv6Address) and address not in _GIVEN_OUT:
        return False
    return address.is_global and not _is_in(address, _NOT_GLOBAL)


def _meant(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that stands for it, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_in(address: Address, networks: Collection[Network]) -> bool:
    return any(address in network for network in networks)
