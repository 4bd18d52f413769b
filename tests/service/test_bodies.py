"""The bodies of requests: how much, how slowly, how many at once."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request

from service import bodies, create_app
from service.bodies import BodyReader
from service.errors import ApiError
from service.settings import Settings
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"


def asking(pieces: AsyncIterator[bytes]) -> Request:
    async def receive() -> dict[str, object]:
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def pieces_of(*sizes: int, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)
    if then is not None:
        await then.wait()


def test_all_bodies_together_are_bounded() -> None:
    async def run() -> None:
        reader = BodyReader(100, budget=250)
        parsed = asyncio.Event()

        async def ask(size: int) -> int:
            async with reader.read(asking(pieces_of(size))) as body:
                await parsed.wait()
                return len(body)

        held = [asyncio.create_task(ask(100)) for _ in range(2)]
        await asyncio.sleep(0)
        while reader.free != 50:
            await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            async with reader.read(asking(pieces_of(30, 30))):
                pytest.fail("there is no room")
        assert caught.value.status == 503
        assert caught.value.headers == {"Retry-After": "1"}
        assert reader.free == 50
        async with reader.read(asking(pieces_of(50))) as body:
            assert len(body) == 50
            assert reader.free == 0
        parsed.set()
        assert await asyncio.gather(*held) == [100, 100]
        assert reader.free == 250

    asyncio.run(run())


@pytest.mark.parametrize(("sizes", "status"), [((60, 41), 413), ((1,), 408)])
def test_what_is_refused_takes_no_room(
    sizes: tuple[int, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.05)

    async def run() -> None:
        reader = BodyReader(100)
        with pytest.raises(ApiError) as caught:
            async with reader.read(asking(pieces_of(*sizes, then=asyncio.Event()))):
                pytest.fail("it is refused")
        assert caught.value.status == status
        assert reader.free == 800

    asyncio.run(run())


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[httpx.Client]:
    settings = Settings(data_dir=tmp_path / "data", api_keys=("right",), body_limit_mb=1)  # type: ignore[arg-type]
    with serving(create_app(settings, StubEngine())) as client:
        yield client


@contextlib.contextmanager
def sending(client: httpx.Client, *headers: str, length: int) -> Iterator[socket.socket]:
    where = urlsplit(str(client.base_url))
    lines = [f"POST {PATH} HTTP/1.1", "Host: a", f"Content-Length: {length}", *headers]
    with socket.create_connection((where.hostname, where.port), timeout=20) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        yield sock


def until_it_is_closed(sock: socket.socket) -> bytes:
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    return answer


def test_a_wrong_key_in_the_header_is_answered_before_the_body(keyed: httpx.Client) -> None:
    with sending(keyed, "key: wrong", "Connection: close", length=900_000) as sock:
        answer = until_it_is_closed(sock)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Invalid API key" in answer


def test_a_slow_sender_is_dropped(keyed: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.2)
    with sending(keyed, length=900_000) as sock:
        sock.sendall(b'{"key": "right"')
        answer = until_it_is_closed(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert keyed.get("/livez").status_code == 200


def test_strangers_keep_nobody_out_by_announcing_much(keyed: httpx.Client) -> None:
    """Twenty senders of nothing take no room; nine of much do, and one of them is told so."""
    asks = {"key": "right", "prompt": "x" * 500_000}
    with contextlib.ExitStack() as open_:
        for _ in range(20):
            open_.enter_context(sending(keyed, length=1_000_000))
        assert keyed.post(PATH, json=asks).status_code == 400
        nine = [open_.enter_context(sending(keyed, length=1_000_000)) for _ in range(9)]
        for sock in nine:
            sock.sendall(bytes(900_000))
        (refused, *_), _, _ = select.select(nine, [], [], 20)
        answer = refused.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    assert keyed.post(PATH, json=asks).status_code == 400
