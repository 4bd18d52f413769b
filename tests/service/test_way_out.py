"""No connection to a forbidden address, by whatever way it is named: counted at the socket.

Every vector goes every way: as a literal, as a name server's answer alone and between good ones, as
the place a redirect leads to, and as a webhook. The name server is a real one.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterator

import pytest

from service.addresses import AddressPolicy
from service.errors import FetchError
from service.fetch import HttpFetcher
from service.guard import Resolver, SystemResolver
from tests.service.live import Origin
from tests.service.names import NameServer, name_server
from tests.service.vectors import HOSTILE, METADATA, SPELLINGS, in_url
from tests.service.wire import connects

REBINDINGS = int(os.environ.get("EDGEFILL_TEST_REBINDINGS", "200"))
ANSWERS = tuple(address for address in HOSTILE if "%" not in address)
REASON = "could not be fetched from its URL"
INVALID = "has a URL that is not valid"


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def refused(
    urls: list[str],
    resolve: Resolver,
    *,
    policy: AddressPolicy | None = None,
    posting: bool = False,
) -> list[tuple[str, int]]:
    """Ask for every URL, each of which must be refused; the connections that were made."""

    async def run() -> None:
        fetcher = HttpFetcher(policy or AddressPolicy(), max_bytes=1000, seconds=5, resolve=resolve)
        for url in urls:
            asking = fetcher.post(url, {}, b"{}", 5) if posting else fetcher.fetch(url)
            with pytest.raises(FetchError) as caught:
                await asking
            assert caught.value.reason in (REASON, INVALID), url
        await fetcher.aclose()

    with connects() as seen:
        asyncio.run(run())
    return seen


def redirecting(origin: Origin, locations: list[str]) -> list[str]:
    """A URL per location, each of which redirects to it."""
    return [
        origin.redirect(f"/{i}", location.encode().decode("latin-1")).replace(
            "127.0.0.1", "origin.example"
        )
        for i, location in enumerate(locations)
    ]


def zone(name: str, asked: int) -> list[str]:
    """``h<number>.example`` has one hostile address; ``m`` and ``n`` have it among good ones."""
    if name == "origin.example":
        return ["127.0.0.1"]
    kind, number = name[0], int(name[1:].partition(".")[0])
    good = ["1.1.1.1", "2606:4700:4700::1111"]
    hostile = [ANSWERS[number]]
    return {"h": hostile, "m": good + hostile, "n": hostile + good}[kind]


def named(kind: str) -> list[str]:
    return [f"http://{kind}{number}.example/" for number in range(len(ANSWERS))]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("posting", [False, True])
def test_literals(names: NameServer, scheme: str, posting: bool) -> None:
    urls = [f"{scheme}://{in_url(address)}/" for address in HOSTILE]
    assert len(urls) >= 52
    assert refused(urls, names.resolve, posting=posting) == []
    assert names.asked == {}


@pytest.mark.parametrize("kind", ["h", "m", "n"])
@pytest.mark.parametrize("posting", [False, True])
def test_answers_of_a_name_server(names: NameServer, kind: str, posting: bool) -> None:
    names.answers = zone
    urls = named(kind)
    assert refused(urls, names.resolve, posting=posting) == []
    assert sum(names.asked.values()) == len(urls)


@pytest.mark.parametrize("kind", ["literal", "h", "m"])
def test_where_redirects_lead(names: NameServer, pictures: Origin, kind: str) -> None:
    names.answers = zone
    literals = [f"http://{in_url(address)}/" for address in HOSTILE]
    urls = redirecting(pictures, literals if kind == "literal" else named(kind))
    seen = refused(urls, names.resolve, policy=AddressPolicy.parse(["origin.example"]))
    assert seen == [("127.0.0.1", pictures.port)] * len(urls)
    assert pictures.connections == len(urls)


@pytest.mark.parametrize("posting", [False, True])
def test_spellings(pictures: Origin, posting: bool) -> None:
    """By the resolver of the system, which reads most of them as this machine."""
    resolve = SystemResolver()
    urls = [f"http://{spelling}/" for spelling in SPELLINGS]
    try:
        assert refused(urls, resolve, posting=posting) == []
    finally:
        resolve.close()


def test_spellings_where_redirects_lead(names: NameServer, pictures: Origin) -> None:
    system = SystemResolver()

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "origin.example" else await system(host, port)

    urls = redirecting(pictures, [f"http://{spelling}/" for spelling in SPELLINGS])
    try:
        seen = refused(urls, resolve, policy=AddressPolicy.parse(["origin.example"]))
    finally:
        system.close()
    assert seen == [("127.0.0.1", pictures.port)] * len(urls)


@pytest.mark.parametrize("posting", [False, True])
def test_metadata_services_where_everything_is_allowed(names: NameServer, posting: bool) -> None:
    names.answers = lambda name, asked: [METADATA[int(name[1:].partition(".")[0])]]
    everything = AddressPolicy.parse(["0.0.0.0/0", "::/0", *(f"h{i}.example" for i in range(99))])
    urls = [f"http://{in_url(address)}/" for address in METADATA]
    urls += [f"http://h{number}.example/" for number in range(len(METADATA))]
    assert refused(urls, names.resolve, policy=everything, posting=posting) == []


def test_redirects_of_webhooks_are_not_followed(names: NameServer, pictures: Origin) -> None:
    names.answers = lambda name, asked: ["127.0.0.1"]
    trap = pictures.body("/trap", b"").replace("127.0.0.1", "trap.example")
    (url,) = redirecting(pictures, [trap])
    policy = AddressPolicy.parse(["origin.example", "trap.example"])

    async def run() -> int:
        fetcher = HttpFetcher(policy, max_bytes=1000, seconds=5, resolve=names.resolve)
        return (await fetcher.post(url, {}, b"{}", 5)).status

    with connects() as seen:
        assert asyncio.run(run()) == 302
    assert seen == [("127.0.0.1", pictures.port)]
    assert "trap.example" not in names.asked


def test_a_name_server_that_changes_its_answers(names: NameServer, pictures: Origin) -> None:
    """127.0.0.1 is permitted and 127.0.0.2 is not; real servers listen on both, on one port."""
    dice = random.Random(4)
    good, bad = "127.0.0.1", "127.0.0.2"
    names.answers = lambda name, asked: (
        [[good], [bad]][asked % 2] if asked % 4 < 2 else dice.choice([[good, bad], [bad, good]])
    )
    url = pictures.body("/a", b"picture").replace("127.0.0.1", "rebinding.example")
    policy = AddressPolicy.parse([good])

    async def run() -> list[bool]:
        fetcher = HttpFetcher(policy, max_bytes=1000, seconds=5, resolve=names.resolve)
        came = []
        for _ in range(REBINDINGS):
            try:
                came.append(await fetcher.fetch(url) == b"picture")
            except FetchError:
                came.append(False)
        return came

    with socket.create_server((bad, pictures.port)) as trap, connects() as seen:
        trap.setblocking(False)
        assert asyncio.run(run()) == [i % 4 == 0 for i in range(REBINDINGS)]
        with pytest.raises(BlockingIOError):
            trap.accept()
        assert set(seen) == {(good, pictures.port)}
        assert pictures.connections == len(seen) == len(range(0, REBINDINGS, 4))
        assert names.asked == {"rebinding.example": REBINDINGS}


def test_the_trap_catches_those_who_resolve_twice(names: NameServer) -> None:
    """The check of the check: what looks first and connects by name afterwards is counted."""
    names.answers = lambda name, asked: [["127.0.0.1"], ["127.0.0.2"]][asked]
    with socket.create_server(("127.0.0.2", 0)) as trap, connects() as seen:
        assert asyncio.run(names.resolve("a.example", 80)) == ["127.0.0.1"]
        (address,) = asyncio.run(names.resolve("a.example", 80))
        with socket.create_connection((address, trap.getsockname()[1])):
            trap.accept()[0].close()
    assert [host for host, _ in seen] == ["127.0.0.2"]
