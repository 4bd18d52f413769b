"""The way out: what may be connected to, and how much is taken from there."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import pytest

from service.addresses import AddressPolicy
from service.errors import FetchError
from service.fetch import HttpFetcher
from service.guard import Resolver, SystemResolver
from tests.service.live import Origin

LOOPBACK = AddressPolicy.parse(["127.0.0.1"])


def get(
    url: str,
    *,
    policy: AddressPolicy = LOOPBACK,
    max_bytes: int = 1000,
    seconds: float = 5.0,
    resolve: Resolver | None = None,
) -> bytes:
    async def run() -> bytes:
        fetcher = HttpFetcher(policy, max_bytes=max_bytes, seconds=seconds, resolve=resolve)
        try:
            return await fetcher.fetch(url)
        finally:
            await fetcher.aclose()

    return asyncio.run(run())


def resolver(*rounds: Iterable[str]) -> Resolver:
    """A name server: one list of addresses per question, the last one for ever."""
    answers = [list(addresses) for addresses in rounds]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return resolve


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that a connection is asked for, on any port; none is made."""
    asked: list[str] = []

    async def connect_tcp(self: object, host: str, port: int, **rest: Any) -> None:
        asked.append(host)
        raise httpcore.ConnectError("not in this test")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    return asked


def test_public_answers_are_connected_to_in_turn(connects: list[str]) -> None:
    with pytest.raises(FetchError, match="no connection"):
        get("http://a.example/", resolve=resolver(["1.1.1.1", "2606:4700::1111"]))
    assert connects == ["1.1.1.1", "2606:4700::1111"]


def test_a_name_is_resolved_once_per_connection(connects: list[str]) -> None:
    rebinding = resolver(["1.1.1.1"], ["127.0.0.1"])
    with pytest.raises(FetchError):
        get("http://a.example/", policy=AddressPolicy(), resolve=rebinding)
    assert connects == ["1.1.1.1"]


def test_other_ports_are_for_named_hosts_only(connects: list[str]) -> None:
    for port in (22, 25, 6379, 8000):
        with pytest.raises(FetchError, match="not permitted"):
            get(f"http://a.example:{port}/", resolve=resolver(["1.1.1.1"]))
    assert connects == []
    named = AddressPolicy.parse(["a.example"])
    with pytest.raises(FetchError, match="no connection"):
        get("http://a.example:8000/", policy=named, resolve=resolver(["1.1.1.1"]))
    assert connects == ["1.1.1.1"]


@pytest.mark.parametrize(
    "answer", [[], ["not an address"], OSError("no such host"), UnicodeError("label empty")]
)
def test_names_without_a_usable_address(answer: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    with pytest.raises(FetchError):
        get("http://a.example/", resolve=resolve)


def test_redirects_are_followed_three_times(pictures: Origin) -> None:
    pictures.body("/0", b"picture")
    for i in range(1, 5):
        pictures.redirect(f"/{i}", f"/{i - 1}", status=(301, 302, 303, 307, 308)[i])
    assert get(pictures.url + "/3") == b"picture"
    with pytest.raises(FetchError, match="more than 3 redirects"):
        get(pictures.url + "/4")
    with pytest.raises(FetchError, match="more than 3 redirects"):
        get(pictures.redirect("/loop", "/loop"))


def test_what_is_sent(pictures: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    url = pictures.body("/a.png", b"picture", headers={"Set-Cookie": "a=b"})
    assert get(url) == b"picture"
    assert get(url) == b"picture"
    for sent in pictures.requests:
        assert sent == {
            "host": f"127.0.0.1:{pictures.port}",
            "user-agent": "edgefill",
            "accept": "image/png, image/jpeg",
            "accept-encoding": "identity",
            "connection": "close",
        }


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 403, 404, 500])
def test_every_status_but_200_is_an_error(pictures: Origin, status: int) -> None:
    with pytest.raises(FetchError, match=f"status {status}"):
        get(pictures.body("/a", b"", status=status))


def test_the_size_is_limited_by_what_arrives(pictures: Origin) -> None:
    assert get(pictures.body("/fits", bytes(1000))) == bytes(1000)
    with pytest.raises(FetchError, match="more than 1000 bytes") as caught:
        get(pictures.body("/declared", bytes(1001)))
    assert caught.value.reason == "is larger than 0.001 MB"

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"64\r\n" + bytes(100) + b"\r\n")
        except OSError:
            handler.close_connection = True

    pictures.answers["/endless"] = endless
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        get(pictures.url + "/endless")


def test_compressed_bodies_are_refused(pictures: Origin) -> None:
    bomb = gzip.compress(bytes(100_000))
    url = pictures.body("/bomb", bomb, headers={"Content-Encoding": "gzip"})
    with pytest.raises(FetchError, match="was not asked for"):
        get(url)


def test_a_slow_body_ends_at_the_deadline(pictures: Origin) -> None:
    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    pictures.answers["/slow"] = trickle
    begin = time.monotonic()
    with pytest.raises(FetchError, match="took longer than allowed: 0.3 s"):
        get(pictures.url + "/slow", seconds=0.3)
    assert time.monotonic() - begin < 2


def test_broken_servers_are_errors(pictures: Origin) -> None:
    def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    def nonsense(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"this is no HTTP\r\n\r\n")

    def short(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"too little")

    pictures.answers.update({"/hang-up": hang_up, "/nonsense": nonsense, "/short": short})
    for path in ("/hang-up", "/nonsense", "/short", "/not-there"):
        with pytest.raises(FetchError):
            get(pictures.url + path)
    with pytest.raises(FetchError):
        get(f"https://127.0.0.1:{pictures.port}/")


def test_the_system_resolver_answers_for_loopback() -> None:
    resolve = SystemResolver()
    try:
        assert asyncio.run(resolve("localhost", 80))
    finally:
        resolve.close()
