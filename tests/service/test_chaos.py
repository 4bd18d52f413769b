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
SLOW = "slower than 16384 bytes"
ENDLESS = "more than 100000 bytes"
BESIDES = "more than 65536 bytes besides the body"
CUT_OFF = "disconnected without sending a response"
REASONS = {
    "silence": "ReadTimeout",
    "slow_headers": "took longer than allowed",
    "slow_body": SLOW,
    "slow_chunks": SLOW,
    "stops_in_the_body": SLOW,
    "declares_more": "without sending complete message body",
    "declares_too_much": "bad Content-Length",
    "two_lengths": "conflicting Content-Length",
    "negative_length": "bad Content-Length",
    "endless_body": ENDLESS,
    "endless_chunks": ENDLESS,
    "tiny_chunks": BESIDES,
    "chunk_extensions": BESIDES,
    "endless_chunk_size": BESIDES,
    "wrong_chunks": "illegal chunk header",
    "endless_trailers": BESIDES,
    "gzip_bomb": "was not asked for",
    "gzip_in_transfer": "Only Transfer-Encoding: chunked",
    "redirect_loop": "more than 3 redirects",
    "redirect_with_endless_body": "more than 3 redirects",
    "header_flood": BESIDES,
    "endless_header": BESIDES,
    "too_many_headers": "65 headers",
    "too_long_headers": "headers of 33016 bytes",
    "interim_answers": BESIDES,
    "other_protocol": "SWITCH_UPGRADE",
    "http_0_9": CUT_OFF,
    "closes_at_once": CUT_OFF,
    "closes_in_the_headers": CUT_OFF,
    "reset": "ReadError",
}
"""What stops each of them, as it is told in the log."""


@pytest.fixture
def origin() -> Iterator[Chaos]:
    with chaos() as running:
        yield running


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(fetch_module, "READ_SECONDS", 1.0)


def reader(seconds: float = 10) -> PictureReader:
    fetcher = HttpFetcher(AddressPolicy.parse(["127.0.0.1"]), max_bytes=MAX_BYTES, seconds=seconds)
    return PictureReader(fetcher, max_bytes=MAX_BYTES)


async def refusal(reading: PictureReader, url: str, owner: str = "") -> ApiError:
    """What the client is told; the test fails when that takes much longer than the limits."""
    async with asyncio.timeout(20):
        with pytest.raises(ApiError) as caught:
            await reading.read("init_image", url, owner=owner)
    return caught.value


def test_every_way_is_tested() -> None:
    assert {*REASONS, "declares_less"} == set(MODES)


@pytest.mark.parametrize("mode", REASONS)
def test_what_a_bad_origin_costs(origin: Chaos, mode: str) -> None:
    reading = reader(0.6 if mode == "slow_headers" else 10)
    tracemalloc.start()
    try:
        for _ in range(ROUNDS):
            refused = asyncio.run(refusal(reading, origin.url(mode)))
            assert refused.status == 400
            assert refused.message in SENTENCES
            assert REASONS[mode] in str(refused.__cause__)
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
        reading = reader(3)
        bad = [
            asyncio.create_task(refusal(reading, origin.url(mode), owner="greedy"))
            for mode in REASONS
        ]
        for _ in range(20):
            async with asyncio.timeout(20):
                assert len(await reading.read("init_image", url, owner="modest")) == MAX_BYTES
        assert {refused.message for refused in await asyncio.gather(*bad)} == set(SENTENCES)

    asyncio.run(run())


def test_an_answer_to_a_webhook_is_not_read(origin: Chaos) -> None:
    async def run() -> list[int]:
        fetcher = HttpFetcher(AddressPolicy.parse(["127.0.0.1"]), max_bytes=MAX_BYTES, seconds=10)
        modes = ("endless_body", "tiny_chunks", "slow_body", "gzip_bomb")
        return [(await fetcher.post(origin.url(mode), {}, b"{}", 5)).status for mode in modes]

    assert asyncio.run(run()) == [200] * 4
    origin.joined()
    assert origin.closed == 4
