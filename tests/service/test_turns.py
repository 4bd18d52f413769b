"""Nobody has more than a share of the fetches, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections import Counter

import pytest

from service import fetch as fetch_module
from service.addresses import AddressPolicy
from service.errors import FetchError
from service.fetch import MAX_FETCHES, MAX_PER_HOST, MAX_PER_OWNER, HttpFetcher
from service.turns import Turns
from tests.service.live import Origin


def test_turns_are_by_name_and_forgotten_afterwards() -> None:
    turns = Turns(2)
    inside: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def work(name: str) -> None:
        async with turns.of(name):
            inside[name] += 1
            most[name] = max(most[name], inside[name])
            await asyncio.sleep(0)
            inside[name] -= 1

    async def run() -> None:
        cancelled = asyncio.create_task(work("a"))
        await asyncio.gather(*(work(name) for name in "aabbbaaac"))
        cancelled.cancel()
        async with turns.of("a"), turns.of("a"):
            waiting = asyncio.create_task(work("a"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert len(turns) == 1
        assert len(turns) == 0

    asyncio.run(run())
    assert most == {"a": 2, "b": 2, "c": 1}


class Held:
    """An origin that answers nobody until it is let go, and counts who waits by host."""

    def __init__(self, pictures: Origin) -> None:
        self.inside: Counter[str] = Counter()
        self.go = threading.Event()
        self.port = pictures.port
        pictures.answers["/"] = self.answer

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        host = handler.headers["Host"].partition(":")[0]
        self.inside[host] += 1
        self.go.wait(20)
        self.inside[host] -= 1
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")


def everybody_here() -> HttpFetcher:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    policy = AddressPolicy.parse(["127.0.0.1", "named.example"])
    return HttpFetcher(policy, max_bytes=1000, seconds=20, resolve=resolve)


async def settled(held: Held, count: int) -> dict[str, int]:
    """Who is inside once so many are, and nobody comes after them."""
    async with asyncio.timeout(10):
        while held.inside.total() < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    return dict(held.inside)


@pytest.mark.parametrize(
    ("asks", "inside"),
    [
        ([("a.example", f"key{i}") for i in range(6)], {"a.example": MAX_PER_HOST}),
        ([("named.example", "key")] * 6, {"named.example": MAX_PER_OWNER}),
        ([("127.0.0.1", "key")] * 6, {"127.0.0.1": MAX_PER_OWNER}),
        (
            [("named.example", f"key{i // 3}") for i in range(12)],
            {"named.example": MAX_FETCHES},
        ),
        (
            [("named.example", "greedy")] * 10 + [("b.example", "modest")],
            {"named.example": MAX_PER_OWNER, "b.example": 1},
        ),
    ],
)
def test_shares(pictures: Origin, asks: list[tuple[str, str]], inside: dict[str, int]) -> None:
    held = Held(pictures)

    async def run() -> None:
        fetcher = everybody_here()
        tasks = [
            asyncio.create_task(fetcher.fetch(f"http://{host}:{held.port}/", owner=owner))
            for host, owner in asks
        ]
        try:
            assert await settled(held, sum(inside.values())) == inside
        finally:
            held.go.set()
        assert await asyncio.gather(*tasks) == [b"x"] * len(asks)

    asyncio.run(run())


def test_who_waits_too_long_for_a_turn_is_told(
    pictures: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "TURN_SECONDS", 0.2)
    held = Held(pictures)

    async def run() -> None:
        fetcher = everybody_here()
        url = f"http://a.example:{held.port}/"
        first = [asyncio.create_task(fetcher.fetch(url)) for _ in range(MAX_PER_HOST)]
        await settled(held, MAX_PER_HOST)
        with pytest.raises(FetchError, match="waited 0.2 s for a turn") as caught:
            await fetcher.fetch(url)
        assert "too many" in caught.value.reason
        held.go.set()
        assert await asyncio.gather(*first) == [b"x"] * MAX_PER_HOST
        assert await fetcher.fetch(url) == b"x"

    asyncio.run(run())
