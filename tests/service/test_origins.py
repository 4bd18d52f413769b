"""Without keys, pages of strangers in a browser of this machine cannot use the server."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from service.app import create_app
from service.origins import OriginPolicy
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"
LOCAL = [
    "http://127.0.0.1:8000",
    "http://localhost",
    "https://[::1]:9",
    "http://app.localhost:3000",
]
STRANGERS = [
    "https://evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost.evil.example",
    "http://localhost@evil.example",
    "http://10.0.0.1",
    "http://[::2]",
    "file://",
    "null",
    "",
]


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "any", "prompt": "a cat", "width": 64, "height": 64, **pictures}


def _ask(app: Starlette, body: dict[str, Any], origin: str | None) -> httpx.Response:
    headers = {} if origin is None else {"Origin": origin, "Content-Type": "text/plain"}
    with serving(app) as client:
        return client.post(PATH, json=body, headers=headers)


@pytest.mark.parametrize("origin", LOCAL)
def test_pages_of_this_machine_are_taken(origin: str) -> None:
    policy = OriginPolicy.parse((), keys=False, public_url=None)
    assert policy.permits(origin)


@pytest.mark.parametrize("origin", STRANGERS)
def test_strangers_are_not(origin: str) -> None:
    for entries in ((), ("https://app.example",)):
        assert not OriginPolicy.parse(entries, keys=False, public_url=None).permits(origin)
    assert OriginPolicy.parse((), keys=True, public_url=None).permits(origin)
    assert OriginPolicy.parse(("*",), keys=False, public_url=None).permits(origin)


def test_named_origins_are_compared_whole() -> None:
    policy = OriginPolicy.parse(
        ("https://app.example",), keys=True, public_url="https://fill.example/base"
    )
    assert policy.permits("https://app.example")
    assert policy.permits("https://app.example:443")
    assert policy.permits("https://fill.example")
    assert not policy.permits("http://app.example")
    assert not policy.permits("https://app.example:8443")
    assert not policy.permits("https://app.example.evil.example")


def test_a_page_of_a_stranger_makes_no_job(settings: Settings, body: dict[str, Any]) -> None:
    engine = StubEngine()
    app = create_app(settings, engine)
    refused = _ask(app, body, "https://evil.example")
    assert refused.status_code == 403
    assert refused.json()["status"] == "error"
    assert "origin" in refused.json()["message"]
    assert engine.requests == []
    for origin in (None, "http://localhost:3000"):
        assert _ask(app, body, origin).json()["status"] == "success"


def test_with_keys_every_page_may_ask(settings: Settings, body: dict[str, Any]) -> None:
    settings = settings.model_copy(update={"api_keys": (SecretStr("any"),)})
    answer = _ask(create_app(settings, StubEngine()), body, "https://app.example")
    assert answer.json()["status"] == "success"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
