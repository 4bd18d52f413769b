"""Random addresses, most of them at the edges of special networks, against an independent table.

The oracle is ``ssrfguard``, which has a table and decoders of its own. Whatever it refuses is
refused here; what is refused here beyond that is refused for a listed reason.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Final

from ssrfguard import DEFAULT_DENIED

from service import addresses
from service.addresses import Address, canonical, is_public

COUNT: Final = int(os.environ.get("EDGEFILL_TEST_ADDRESSES", "100000"))

GLOBAL: Final = IPv6Network("2000::/3")
STRICTER: Final = {
    ip_network(network): reason
    for network, reason in {
        "168.63.129.16/32": "Azure's host agent",
        "192.0.0.0/24": "protocol assignments, its anycast services too",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "AMT relays",
        "192.175.48.0/24": "AS112",
        "2001::/23": "protocol assignments and Teredo, whole",
        "2002::/16": "6to4, whole",
        "2620:4f:8000::/48": "AS112",
    }.items()
}
"""Refused here and not by the oracle: no picture is there."""

OUTSIDE: Final = "outside of 2000::/3, where no public address is"

NETWORKS: Final = tuple(
    {
        *(block.network for block in DEFAULT_DENIED.blocks),
        *addresses._REFUSED_V4,
        *addresses._REFUSED_V6,
        *addresses._CARRIES_V4,
        *STRICTER,
        GLOBAL,
    }
)


def draw(dice: random.Random) -> Address:
    """Six in ten at an edge of a special network, the others inside one, inside an address that
    carries one, and anywhere."""
    kind = dice.randrange(10)
    if kind == 8:
        return IPv4Address(dice.getrandbits(32))
    if kind == 9:
        return IPv6Address(dice.choice([1 << 125, 0]) | dice.getrandbits(125))
    network = dice.choice(NETWORKS)
    first, last = int(network[0]), int(network[-1])
    if kind == 6:
        number = dice.randint(first, last)
    elif kind == 7:
        while (inner := draw(dice)).version == 6:
            pass
        start = dice.choice([0xFFFF << 32, 0x64FF9B << 96, 0, 0xFFFF << 48, 0x2002 << 112])
        return IPv6Address(start | int(inner) << (80 if start >> 112 == 0x2002 else 0))
    else:
        number = dice.choice([first, last]) + dice.randint(-2, 2)
    bits = 32 if network.version == 4 else 128
    number %= 1 << bits
    return IPv4Address(number) if bits == 32 else IPv6Address(number)


def why_stricter(address: Address) -> str | None:
    meant = canonical(address)
    if meant.version == 6 and meant not in GLOBAL:
        return OUTSIDE
    return next((reason for network, reason in STRICTER.items() if meant in network), None)


def test_what_the_oracle_refuses_is_refused() -> None:
    dice = random.Random(2026)
    seen: Counter[str] = Counter()
    for _ in range(COUNT):
        address = draw(dice)
        ours, theirs = is_public(address), not DEFAULT_DENIED.classify(address).blocked
        if ours == theirs:
            seen["public" if ours else "refused"] += 1
            continue
        assert theirs, f"{address} is permitted, and refused by the oracle"
        reason = why_stricter(address)
        assert reason is not None, f"{address} is refused, and permitted by the oracle"
        seen[reason] += 1
    if COUNT >= 10_000:
        assert set(seen) == {"public", "refused", OUTSIDE, *STRICTER.values()}
        assert min(seen["public"], seen["refused"]) > COUNT // 20
