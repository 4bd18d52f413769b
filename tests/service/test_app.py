"""Routes, limits, headers, waiting and leaving."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from service import bodies
from service.app import create_app
from service.runner import LATE
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, **pictures}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with serving(create_app(settings, StubEngine())) as running:
        yield running


def test_alive_and_ready(client: httpx.Client) -> None:
    for path in ("/livez", "/v2/health/live"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    for path in ("/readyz", "/v2/health/ready"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok", "state": "ready"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PATH, 405),
        ("PUT", PATH + "/", 405),
        ("POST", "/livez", 405),
        ("DELETE", "/outputs/a", 405),
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
        ("POST", "/api/v6/realtime/unknown", 404),
        ("GET", "/outputs/", 404),
        ("GET", "/outputs/nothing.png", 404),
        ("GET", "/outputs/" + "a" * 24 + "-0.png", 404),
        ("GET", "/outputs/../app.py", 404),
        ("GET", "/outputs/..%2f..%2fapp.py", 404),
        ("GET", "/outputs/%2e%2e", 404),
    ],
)
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["status"] == "error"
    assert response.json()["message"].endswith(".")
    if status == 405:
        assert response.headers["allow"]


def test_outputs_are_served_to_everybody(client: httpx.Client, body: dict[str, Any]) -> None:
    link = client.post(PATH, json=body).json()["output"][0]
    assert link.startswith(str(client.base_url))
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Origin": "https://app.example"}):
            response = client.request(method, link, headers=headers)
            assert response.status_code == 200
            assert response.headers["content-type"] == "image/png"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers.get_list("access-control-allow-origin") == ["*"]
            assert response.headers["content-security-policy"] == "default-src 'none'"
            assert int(response.headers["content-length"]) > 100
            assert (response.content == b"") == (method == "HEAD")


def test_links_use_the_public_url(settings: Settings, body: dict[str, Any]) -> None:
    public = settings.model_copy(update={"public_url": "https://fill.example/base"})
    with serving(create_app(public, StubEngine())) as client:
        link = client.post(PATH, json=body).json()["output"][0]
    assert link.startswith("https://fill.example/base/outputs/")


def test_browsers_may_ask_from_anywhere(settings: Settings, body: dict[str, Any]) -> None:
    keyed = settings.model_copy(update={"api_keys": (SecretStr(body["key"]),)})
    with serving(create_app(keyed, StubEngine())) as client:
        _ask_from_a_page(client, body)


def _ask_from_a_page(client: httpx.Client, body: dict[str, Any]) -> None:
    asks = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, key, authorization",
    }
    preflight = client.options(PATH, headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"]
    assert {"content-type", "key", "authorization"} <= set(allowed.split(", "))
    for change in ({}, {"prompt": ""}):
        response = client.post(PATH, json=body | change, headers={"Origin": asks["Origin"]})
        assert response.headers.get_list("access-control-allow-origin") == ["*"]


def test_large_bodies_are_refused(settings: Settings) -> None:
    small = settings.model_copy(update={"body_limit_mb": 1})
    with serving(create_app(small, StubEngine())) as client:
        where = urlsplit(str(client.base_url))
        for headers in ({"Content-Length": "1000001"}, {"Transfer-Encoding": "chunked"}):
            connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
            connection.putrequest("POST", PATH)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            if "Transfer-Encoding" in headers:
                for _ in range(11):
                    connection.send(b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n")
            response = connection.getresponse()
            assert response.status == 413
            assert b"The request body is larger than 1 MB." in response.read()
            connection.close()


def test_large_pictures_are_refused(settings: Settings, body: dict[str, Any]) -> None:
    small = settings.model_copy(update={"picture_limit_mb": 1})
    with serving(create_app(small, StubEngine())) as client:
        response = client.post(PATH, json=body | {"init_image": "A" * 2_000_000})
    assert response.status_code == 400
    assert response.json()["message"] == "The init image is larger than 1 MB."


def test_what_misses_its_deadline_is_cancelled(settings: Settings, body: dict[str, Any]) -> None:
    stub = StubEngine(delay=30)
    with serving(create_app(settings, stub)) as client:
        begin = time.monotonic()
        response = client.post(PATH, json=body | {"deadline_ms": 200})
        assert time.monotonic() - begin < 5
        assert stub.cancelled.wait(5)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["message"] == LATE


def test_bodies_that_do_not_arrive_are_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    with serving(create_app(settings, StubEngine())) as client:
        where = urlsplit(str(client.base_url))
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        connection.putrequest("POST", PATH)
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 408
        connection.close()


def test_a_client_that_leaves_cancels_its_request(settings: Settings, body: dict[str, Any]) -> None:
    stub = StubEngine(delay=30)
    with serving(create_app(settings, stub)) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(PATH, json=body, timeout=0.3)
        assert stub.cancelled.wait(5)
        assert client.get("/livez").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body(settings: Settings) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        where = urlsplit(str(client.base_url))
        with socket.create_connection((where.hostname, where.port)) as sock:
            sock.sendall(
                f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
        assert client.get("/livez").status_code == 200


def test_a_slow_engine_and_a_slow_origin_do_not_hold_up_others(
    settings: Settings, body: dict[str, Any], pictures: Origin
) -> None:
    stub = StubEngine(delay=2.0)
    pictures.answers["/slow.png"] = lambda handler: time.sleep(2.0)
    with serving(create_app(settings, stub)) as client, ThreadPoolExecutor(6) as threads:
        slow = body | {"init_image": pictures.url + "/slow.png"}
        waiting = [threads.submit(client.post, PATH, json=what) for what in [body, slow] * 3]
        while len(stub.requests) < 3 or pictures.connections < 3:
            time.sleep(0.01)
        for _ in range(5):
            assert client.get("/livez").status_code == 200
        assert not any(call.done() for call in waiting)
        assert [call.result().status_code for call in waiting] == [200, 400] * 3


def test_the_engine_is_opened_and_closed_when_none_is_given(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[StubEngine] = []

    class Recorded(StubEngine):
        @classmethod
        def open(cls, path: object = None, *, device: str = "auto", **_: object) -> StubEngine:
            opened.append(cls())
            return opened[-1]

    monkeypatch.setattr("service.app.EngineProcess", Recorded)
    app = create_app(settings)
    with serving(app) as client:
        assert client.get("/readyz").status_code == 200
        assert not opened[0].closed
    assert opened[0].closed


def test_a_given_engine_is_left_open(settings: Settings) -> None:
    stub = StubEngine()
    with serving(create_app(settings, stub)):
        pass
    assert not stub.closed
