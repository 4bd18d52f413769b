"""Failed fetches are counted by what went wrong, each against a real socket."""

from __future__ import annotations

import asyncio
import http.server
import socket
import time

import httpcore
import pytest

from service.addresses import AddressPolicy
from service.errors import FetchError
from service.fetch import HttpFetcher
from service.fetch_kinds import KINDS, kind_of
from service.metrics import Metrics
from tests.service.live import Origin


async def resolve(host: str, port: int) -> list[str]:
    if host == "inside.example":
        return ["10.0.0.1"]
    if host == "empty.example":
        return []
    raise OSError("no such name")


def kinds(url: str, seconds: float = 10.0) -> dict[str, float]:
    """What one failed fetch is counted as."""
    metrics = Metrics()

    async def fetch() -> None:
        policy = AddressPolicy.parse(("127.0.0.1",))
        fetcher = HttpFetcher(policy, max_bytes=1000, seconds=seconds, resolve=resolve)
        try:
            with pytest.raises(FetchError):
                await metrics.counted(fetcher).fetch(url)
        finally:
            await fetcher.aclose()

    asyncio.run(fetch())
    found = {}
    for family in metrics.registry.collect():
        if family.name == "edgefill_fetch_errors":
            found = {s.labels["reason"]: s.value for s in family.samples if s.value == 1}
    return found


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://name:word@127.0.0.1/", "bad_url"),
        ("http://127.1/", "bad_url"),
        ("http://a b/", "bad_url"),
        ("ftp://127.0.0.1/", "bad_url"),
        ("http://10.0.0.1/", "refused_address"),
        ("http://inside.example/", "refused_address"),
        ("http://nowhere.example/", "dns"),
        ("http://empty.example/", "dns"),
    ],
)
def test_before_there_is_a_connection(url: str, kind: str) -> None:
    assert kinds(url) == {kind: 1}


def test_answers(pictures: Origin) -> None:
    assert kinds(pictures.url + "/gone") == {"status": 1}
    assert kinds(pictures.body("/large", b" " * 1001)) == {"too_large": 1}
    packed = pictures.body("/packed", b"", headers={"Content-Encoding": "gzip"})
    assert kinds(packed) == {"protocol": 1}
    assert kinds(pictures.redirect("/round", "/round")) == {"redirect": 1}
    assert kinds(pictures.redirect("/odd", "http://127.1/")) == {"bad_url": 1}
    assert kinds(pictures.redirect("/inside", "http://10.0.0.1/")) == {"refused_address": 1}
    assert kinds(pictures.url.replace("http:", "https:")) == {"tls": 1}


def test_connections_that_fail(pictures: Origin) -> None:
    def nothing(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    def garbage(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"garbage\r\n\r\n")
        handler.close_connection = True

    pictures.answers |= {
        "/nothing": nothing,
        "/garbage": garbage,
        "/slow": lambda handler: time.sleep(0.4),
    }
    assert kinds(pictures.url + "/nothing") == {"protocol": 1}
    assert kinds(pictures.url + "/garbage") == {"protocol": 1}
    assert kinds(pictures.url + "/slow", seconds=0.2) == {"timeout": 1}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert kinds(f"http://127.0.0.1:{port}/") == {"connect": 1}


def test_what_is_not_known() -> None:
    assert kind_of(FetchError("something")) == "other"
    assert kind_of(FetchError("something", kind="new")) == "other"
    error = FetchError("something")
    error.__cause__ = httpcore.ReadTimeout()
    assert kind_of(error) == "timeout"
    error.__cause__ = error  # a circle ends
    assert kind_of(error) == "other"
    assert len(set(KINDS)) == len(KINDS)
