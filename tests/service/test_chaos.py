"""Origins that answer as badly as they can cost a sentence, little time and little memory."""

from __future__ import annotations

import asyncio
import os
import re
import tracemalloc
from collections.abc import Iterator

import pytest

from service import fetch as fetch_module
from service.addresses import AddressPolicy
from service.errors import ApiError
from service.fetch import HttpFetcher
from service.inputs import PictureReader
from tests.service.chaos import MODES, Chaos, chaos
from tests.service.live import Origin

ROUNDS = int(os.environ.get("EDGEFILL_TEST_CHAOS", "1"))
MAX_BYTES = 100_000
SENTENCES = (
    "The init image could not be fetched from its URL.",
    "The init image is larger than 0.1 MB.",
)
HOSTILE = tuple(mode for mode in MODES if mode != "declares_less")


@pytest.fixture
def origin() -> Iterator[Chaos]:
    with chaos() as running:
        yield running


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(fetch_module, "READ_SECONDS", 0.3)


def reader() -> PictureReader:
    fetcher = HttpFetcher(AddressPolicy.parse(["127.0.0.1"]), max_bytes=MAX_BYTES, seconds=0.6)
    return PictureReader(fetcher, max_bytes=MAX_BYTES)


async def refusal(reading: PictureReader, url: str, owner: str = "") -> ApiError:
    """What the client is told; the test fails when that takes much longer than the limits."""
    async with asyncio.timeout(20):
        with pytest.raises(ApiError) as caught:
            await reading.read("init_image", url, owner=owner)
    return caught.value


@pytest.mark.parametrize("mode", HOSTILE)
def test_what_a_bad_origin_costs(origin: Chaos, mode: str) -> None:
    tracemalloc.start()
    try:
        for _ in range(ROUNDS):
            refused = asyncio.run(refusal(reader(), origin.url(mode)))
            assert refused.status == 400
            assert refused.message in SENTENCES
            assert not re.search(r"127|\d{3}|second", refused.message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    origin.joined()
    hops = 4 if mode.startswith("redirect") else 1
    assert origin.opened == hops * ROUNDS
    assert origin.closed == (0 if mode == "reset" else origin.opened)
    assert peak < 8_000_000
    assert origin.sent < hops * ROUNDS * 8_000_000  # what the kernel keeps between us included


def test_what_comes_after_the_declared_end_is_not_taken(origin: Chaos) -> None:
    assert asyncio.run(reader().read("init_image", origin.url("declares_less"))) == b"picture"
    origin.joined()
    assert origin.closed == 1


def test_a_good_picture_comes_while_others_misbehave(origin: Chaos, pictures: Origin) -> None:
    url = pictures.body("/good", bytes(MAX_BYTES))

    async def run() -> None:
        reading = reader()
        bad = [
            asyncio.create_task(refusal(reading, origin.url(mode), owner="greedy"))
            for mode in HOSTILE
        ]
        for _ in range(20):
            async with asyncio.timeout(20):
                assert len(await reading.read("init_image", url, owner="modest")) == MAX_BYTES
        assert {refused.message for refused in await asyncio.gather(*bad)} == set(SENTENCES)

    asyncio.run(run())


def test_an_answer_to_a_webhook_is_not_read(origin: Chaos) -> None:
    async def run() -> list[int]:
        fetcher = HttpFetcher(AddressPolicy.parse(["127.0.0.1"]), max_bytes=MAX_BYTES, seconds=0.6)
        modes = ("endless_body", "tiny_chunks", "slow_body", "gzip_bomb")
        return [(await fetcher.post(origin.url(mode), {}, b"{}", 5)).status for mode in modes]

    assert asyncio.run(run()) == [200] * 4
    origin.joined()
    assert origin.closed == 4
