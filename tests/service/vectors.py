"""Addresses and spellings that a fetcher of strangers' URLs must not connect to, and their sources.

The two special-purpose registries of IANA are meant by "IANA", with the RFC that made the entry.
"""

from __future__ import annotations

from typing import Final

SOURCES: Final = {
    "0.0.0.0": "IANA, RFC 1122: this host; Linux connects it to itself",
    "0.1.2.3": "IANA, RFC 791: this network",
    "10.0.0.1": "IANA, RFC 1918: private",
    "100.64.0.1": "IANA, RFC 6598: carrier-grade NAT",
    "100.100.100.200": "Alibaba's metadata service",
    "127.0.0.1": "IANA, RFC 1122: loopback",
    "127.255.255.254": "IANA, RFC 1122: loopback, its other end",
    "168.63.129.16": "Azure's host agent; a public address by every registry",
    "169.254.0.1": "IANA, RFC 3927: link-local",
    "169.254.0.23": "Tencent's metadata service",
    "169.254.42.42": "Scaleway's metadata service",
    "169.254.169.254": "metadata service of AWS, Azure, Google and others",
    "169.254.170.2": "metadata service of AWS ECS",
    "169.254.170.23": "metadata service of AWS EKS",
    "172.16.0.0": "IANA, RFC 1918: private, its first address",
    "172.31.255.255": "IANA, RFC 1918: private, its last address",
    "192.0.0.1": "IANA, RFC 6890: protocol assignments",
    "192.0.0.8": "IANA, RFC 7600: dummy address",
    "192.0.0.170": "IANA, RFC 7050: NAT64 discovery",
    "192.0.0.192": "Oracle's metadata service",
    "192.0.2.1": "IANA, RFC 5737: documentation",
    "192.88.99.1": "IANA, RFC 7526: 6to4 relays, deprecated",
    "192.168.1.1": "IANA, RFC 1918: private",
    "198.18.0.1": "IANA, RFC 2544: benchmarking",
    "198.19.255.255": "IANA, RFC 2544: benchmarking, its last address",
    "198.51.100.1": "IANA, RFC 5737: documentation",
    "203.0.113.1": "IANA, RFC 5737: documentation",
    "224.0.0.1": "RFC 5771: multicast",
    "239.255.255.250": "RFC 5771: multicast, SSDP",
    "240.0.0.1": "IANA, RFC 1112: reserved",
    "255.255.255.255": "IANA, RFC 919: broadcast",
    "::": "IANA, RFC 4291: unspecified; Linux connects it to itself",
    "::1": "IANA, RFC 4291: loopback",
    "::7f00:1": "RFC 4291: IPv4-compatible 127.0.0.1, deprecated",
    "::a9fe:a9fe": "RFC 4291: IPv4-compatible 169.254.169.254, deprecated",
    "::ffff:127.0.0.1": "IANA, RFC 4291: IPv4-mapped",
    "::ffff:10.0.0.1": "IANA, RFC 4291: IPv4-mapped",
    "::ffff:100.100.100.200": "IANA, RFC 4291: IPv4-mapped",
    "::ffff:168.63.129.16": "IANA, RFC 4291: IPv4-mapped",
    "::ffff:169.254.169.254": "IANA, RFC 4291: IPv4-mapped",
    "::ffff:0:127.0.0.1": "RFC 7915: IPv4-translated (SIIT)",
    "::ffff:0:169.254.169.254": "RFC 7915: IPv4-translated (SIIT)",
    "64:ff9b::7f00:1": "IANA, RFC 6052: NAT64 of 127.0.0.1",
    "64:ff9b::a00:1": "IANA, RFC 6052: NAT64 of 10.0.0.1",
    "64:ff9b::a9fe:a9fe": "IANA, RFC 6052: NAT64 of 169.254.169.254",
    "64:ff9b:1::1": "IANA, RFC 8215: NAT64 for local use",
    "64:ff9b:1::a9fe:a9fe": "IANA, RFC 8215: NAT64 for local use, of 169.254.169.254",
    "100::1": "IANA, RFC 6666: discard-only",
    "100:0:0:1::1": "IANA, RFC 9780: dummy prefix",
    "2001::1": "IANA, RFC 4380: Teredo",
    "2001:0:7f00:1::": "IANA, RFC 4380: Teredo with the server 127.0.0.1",
    "2001:0:4136:e378::5601:5601": "IANA, RFC 4380: Teredo with the client 169.254.169.254",
    "2001:2::1": "IANA, RFC 5180: benchmarking",
    "2001:10::1": "IANA, RFC 4843: ORCHID, deprecated",
    "2001:20::1": "IANA, RFC 7343: ORCHIDv2",
    "2001:db8::1": "IANA, RFC 3849: documentation",
    "2002:7f00:1::": "IANA, RFC 3056: 6to4 of 127.0.0.1",
    "2002:a00:1::1": "IANA, RFC 3056: 6to4 of 10.0.0.1",
    "2002:a9fe:a9fe::1": "IANA, RFC 3056: 6to4 of 169.254.169.254",
    "3fff::1": "IANA, RFC 9637: documentation",
    "4000::1": "RFC 3513: outside 2000::/3, not assigned",
    "5f00::1": "IANA, RFC 9602: segment routing",
    "fc00::1": "IANA, RFC 4193: unique local",
    "fd00:42::42": "Scaleway's metadata service",
    "fd00:c1::a9fe:a9fe": "Oracle's metadata service",
    "fd00:ec2::23": "metadata service of AWS EKS",
    "fd00:ec2::254": "AWS's metadata service",
    "fd20:ce::254": "Google's metadata service",
    "fe80::1": "IANA, RFC 4291: link-local",
    "fe80::1%1": "IANA, RFC 4007: link-local with its zone",
    "fe80::a9fe:a9fe": "OpenStack's metadata service",
    "fec0::1": "RFC 3879: site-local, deprecated",
    "ff02::1": "RFC 4291: multicast, all nodes; global by some standard libraries",
    "ff0e::1": "RFC 4291: multicast of global scope",
}
"""Why each address is refused."""

HOSTILE: Final = tuple(SOURCES)

METADATA: Final = tuple(
    address
    for address, source in SOURCES.items()
    if "metadata service" in source or "host agent" in source or "169.254.169.254" in source
)
"""Refused even where the operator allowed everything."""

PUBLIC: Final = (
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "128.0.0.1",
    "172.32.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
)

SPELLINGS: Final = (
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "0",
    "0x0",
    "127.0.0.01",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "localhost\u3002",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
    "\uff11\uff12\uff17.0.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[0000:0000::1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[fe80::1%25lo]",
    "127.0.0.1%00.example",
    "user@127.0.0.1",
    "example.com@127.0.0.1",
    "127.0.0.1\\.example.com",
    "[127.0.0.1]",
    "1.1.1.1 127.0.0.1",
)
"""Hosts as they stand in a URL, all of which lead to this machine somewhere."""


def in_url(address: str) -> str:
    """An address as the host of a URL."""
    return f"[{address.replace('%', '%25')}]" if ":" in address else address
