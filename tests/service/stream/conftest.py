"""A server with an engine that makes its steps when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stream.steps import StepEngine, Talk, talking


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[httpx.Client, StepEngine]]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), fetch_allow=("127.0.0.1",))
    made = StepEngine()
    with serving(create_app(settings, made), settings) as client, made.freed():
        yield client, made


@pytest.fixture
def engine(running: tuple[httpx.Client, StepEngine]) -> Iterator[StepEngine]:
    running[1].reset()
    with running[1].freed():
        yield running[1]


@pytest.fixture
def server(running: tuple[httpx.Client, StepEngine], engine: StepEngine) -> httpx.Client:
    return running[0]


@pytest.fixture
def talk(server: httpx.Client) -> Iterator[Talk]:
    with talking(server) as stream:
        yield stream


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}
