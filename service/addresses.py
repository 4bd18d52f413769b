"""Which network addresses may be connected to.

Our own frozen table decides, not ``ipaddress.is_global``, whose answer differs between patch
releases of Python (CVE-2024-4032). IPv4 is public unless listed; IPv6 is public only inside
2000::/3 and unless listed there. Addresses that carry an IPv4 address (IPv4-mapped, NAT64) are
judged by the address they carry; 6to4, Teredo and the other transition forms are refused whole.

The metadata services of clouds are refused even where the operator allowed their network, in
whatever form their address comes.

Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries, RFC 6890, RFC 6052, RFC 7526;
the documentation of the cloud providers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REFUSED_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent
        "169.254.0.0/16",  # link-local; metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_REFUSED_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_CARRIES_V4: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
_SIXTOFOUR: Final = IPv6Network("2002::/16")
_TEREDO: Final = IPv6Network("2001::/32")
_V4_AT_THE_END: Final = (
    *_CARRIES_V4,
    IPv6Network("::/96"),  # IPv4-compatible, deprecated
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated (SIIT)
    IPv6Network("64:ff9b:1::/48"),  # NAT64 for local use; carries it here in the /96 form
)
_METADATA: Final[frozenset[Address]] = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host agent
        "169.254.0.23",  # Tencent
        "169.254.42.42",  # Scaleway
        "169.254.169.254",  # AWS, Azure, DigitalOcean, Google, Hetzner, OpenStack, Oracle
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "192.0.0.192",  # Oracle
        "fd00:42::42",  # Scaleway
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:ec2::23",  # AWS EKS
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "fe80::a9fe:a9fe",  # OpenStack
    )
)
_HOST_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def canonical(address: Address) -> Address:
    """The address that is meant: the IPv4 address inside IPv4-mapped and NAT64 forms."""
    if isinstance(address, IPv6Address) and any(address in net for net in _CARRIES_V4):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def carried(address: Address) -> tuple[Address, ...]:
    """The address and every IPv4 address that it carries in any of the transition forms."""
    if isinstance(address, IPv4Address):
        return (address,)
    bits = int(address)
    shifts: tuple[int, ...] = ()
    if any(address in net for net in _V4_AT_THE_END):
        shifts = (0,)
    elif address in _SIXTOFOUR:
        shifts = (80,)
    elif address in _TEREDO:
        shifts = (64,)
    found = [IPv4Address(bits >> shift & 0xFFFF_FFFF) for shift in shifts]
    if address in _TEREDO:  # the client's, with every bit inverted: RFC 4380, section 4
        found.append(IPv4Address(~bits & 0xFFFF_FFFF))
    return (IPv6Address(bits), *found)


def is_public(address: Address) -> bool:
    """Whether an address is plain unicast of the public internet."""
    address = canonical(address)
    if isinstance(address, IPv4Address):
        return not any(address in net for net in _REFUSED_V4)
    if address.scope_id is not None or address not in _GLOBAL_V6:
        return False
    return not any(address in net for net in _REFUSED_V6)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """The public internet, and what the operator allowed beyond it.

    Metadata services of cloud providers stay refused whatever the operator allows.

    Attributes:
        hosts: Names (in lower case) that may resolve to any address.
        networks: Networks that any name may resolve into.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AddressPolicy:
        """Read host names, addresses and CIDRs.

        Raises:
            ValueError: With the entry that is none of these.
        """
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError as exc:
                name = entry.lower().rstrip(".")
                numeric = "/" in entry or ":" in entry or name.rpartition(".")[2].isdecimal()
                if numeric or not _HOST_NAME.fullmatch(name):
                    raise ValueError(
                        f"{entry!r} is neither a host name, nor an address, nor a CIDR: {exc}"
                    ) from exc
                hosts.add(name)
        return cls(hosts=frozenset(hosts), networks=tuple(networks))

    def names(self, host: str, address: Address | None = None) -> bool:
        """Whether the operator named this host, or a network with its address.

        Args:
            host: A name or an address, as in the URL.
            address: What it was resolved to, where that is known.
        """
        if host in self.hosts:
            return True
        if address is None:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                return False
        meant = canonical(address)
        return any(meant in network or address in network for network in self.networks)

    def permits(self, host: str, address: Address) -> bool:
        """Whether ``host``, which resolved to ``address``, may be connected to there."""
        if not _METADATA.isdisjoint(carried(address)):
            return False
        return self.names(host, address) or is_public(address)
