"""Which addresses may be connected to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.addresses import AddressPolicy, is_public
from tests.service.vectors import HOSTILE, PUBLIC

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_are_refused(text: str) -> None:
    assert not is_public(ip_address(text))
    assert not AddressPolicy().permits("name.example", ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_permitted(text: str) -> None:
    assert AddressPolicy().permits("name.example", ip_address(text))


@UNHURRIED
@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_that_the_standard_library_calls_private_is_permitted(number: int) -> None:
    address = IPv4Address(number)
    if address.is_private or address.is_multicast or address.is_reserved:
        assert not is_public(address)
    assert is_public(IPv6Address(0xFFFF << 32 | number)) == is_public(address)
    assert is_public(IPv6Address(0x64FF9B << 96 | number)) == is_public(address)
    assert not is_public(IPv6Address(number))
    assert not is_public(IPv6Address(0x2002 << 112 | number << 80 | 1))


@UNHURRIED
@given(st.integers(0, 2**128 - 1))
def test_no_ipv6_that_the_standard_library_calls_private_is_permitted(number: int) -> None:
    address = IPv6Address(number)
    if address.ipv4_mapped is None and (
        address.is_private or address.is_multicast or address.is_link_local or address.is_site_local
    ):
        assert not is_public(address)


def test_the_operator_adds_hosts_addresses_and_networks() -> None:
    policy = AddressPolicy.parse(["Camera.Local.", "192.168.7.0/24", "::1", "10.1.2.3"])
    assert policy.permits("camera.local", ip_address("10.9.9.9"))
    assert policy.permits("any.example", ip_address("192.168.7.200"))
    assert policy.permits("any.example", ip_address("::ffff:192.168.7.200"))
    assert policy.permits("any.example", ip_address("::1"))
    assert policy.permits("any.example", ip_address("10.1.2.3"))
    assert not policy.permits("any.example", ip_address("10.1.2.4"))
    assert not policy.permits("other.local", ip_address("192.168.8.1"))


@pytest.mark.parametrize(
    "text",
    ["169.254.169.254", "::ffff:169.254.169.254", "168.63.129.16", "100.100.100.200",
     "192.0.0.192", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"],
)  # fmt: skip
def test_metadata_services_stay_refused(text: str) -> None:
    policy = AddressPolicy.parse(["metadata.example", "0.0.0.0/0", "::/0"])
    assert not policy.permits("metadata.example", ip_address(text))


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.1/8", "10.0.0", "1.2.3.4.5", "http://camera", "a b", "camera:80", "", "-,", "::g"],
)
def test_what_is_neither_host_nor_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        AddressPolicy.parse([entry])
