"""img2img and text2img: the same family, the same answers, under both roots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import ROOTS, create_app
from service.schema import KINDS
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine


@pytest.fixture(scope="module")
def stub() -> StubEngine:
    return StubEngine()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, stub: StubEngine) -> Iterator[httpx.Client]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with serving(create_app(settings, stub)) as running:
        yield running


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_route_answers(
    client: httpx.Client, body: dict[str, Any], root: str, kind: str, slash: str
) -> None:
    answer = client.post(f"{root}/{kind}{slash}", json=body)
    assert answer.status_code == 200
    assert answer.json()["status"] == "success"
    assert client.get(answer.json()["output"][0]).status_code == 200


def test_img2img_paints_everything(
    client: httpx.Client, stub: StubEngine, body: dict[str, Any]
) -> None:
    del body["mask_image"]
    meta = client.post(f"{ROOTS[0]}/img2img", json=body).json()["meta"]
    request = stub.requests[-1]
    assert (request.mask == 255).all()
    assert request.strength == 0.7
    assert "mask_image" not in meta
    assert meta["strength"] == 0.7


def test_text2img_starts_from_nothing(
    client: httpx.Client, stub: StubEngine, body: dict[str, Any]
) -> None:
    del body["mask_image"], body["init_image"]
    answer = client.post(f"{ROOTS[0]}/text2img", json={**body, "strength": 0.1}).json()
    request = stub.requests[-1]
    assert (request.mask == 255).all()
    assert np.ptp(request.image) == 0
    assert request.strength == 1.0
    assert "init_image" not in answer["meta"]


@pytest.mark.parametrize(
    ("kind", "left_out", "message"),
    [
        ("text2img", "prompt", "The prompt field is required."),
        ("img2img", "init_image", "The init image field is required."),
        ("inpaint", "mask_image", "The mask image field is required."),
    ],
)
def test_what_each_needs(
    client: httpx.Client, body: dict[str, Any], kind: str, left_out: str, message: str
) -> None:
    answer = client.post(f"{ROOTS[0]}/{kind}", json={**body, left_out: " ", "width": 7})
    assert (answer.status_code, answer.json()["message"]) == (400, message)
