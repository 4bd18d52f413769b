"""How a client's texts are read: from the request's fields to the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine import Bundle, Engine, InpaintRequest
from engine.image import decode_picture
from engine.job import draft
from service.app import create_app
from service.choices import NAMES
from service.cli import main
from service.commands.inpaint import DEMO
from service.engine_process.crossing import unwrap_request, wrap_request
from service.settings import Settings
from tests.engine.tiny_wording import make_wording_bundle
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.test_inpaint import PATH

WORDING = {"prompt_syntax": "a1111", "clip_skip": 2}
TOLD = {NAMES.get(name, name): value for name, value in WORDING.items()}


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wording_bundle(tmp_path_factory.mktemp("bundles") / "wording")


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a (red:1.5) apple", "seed": 3, **pictures}


@pytest.fixture
def client(bundle_path: Path, settings: Settings) -> Iterator[httpx.Client]:
    with (
        Engine.open(bundle_path, threads=1) as engine,
        serving(create_app(settings, engine=engine)) as client,
    ):
        yield client


def test_they_are_taken_and_told(client: httpx.Client, body: dict[str, Any]) -> None:
    usual = client.post(PATH, json=body).json()
    assert not set(TOLD) & set(usual["meta"])
    other = client.post(
        PATH, json=body | {"prompt_syntax": "A1111", "text_layers_skipped": "2"}
    ).json()
    assert {name: other["meta"][name] for name in TOLD} == TOLD
    pictures = [decode_picture(client.get(a["output"][0]).content) for a in (usual, other)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("instant", ["yes", "no"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_layers_skipped": 3},
            "The text layers skipped is 3, but the model was made for 0 to 2 "
            "(edgefill export --clip-skip N).",
        ),
        (
            {"prompt_syntax": "a1111", "prompt": "a [cat|dog]"},
            "The prompt holds [a|b], but words cannot change between steps.",
        ),
        (
            {"prompt_syntax": "a1111", "negative_prompt": "(bad:1000)"},
            "The negative prompt gives a word the weight 1000; -100 to 100 are allowed.",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(
    client: httpx.Client, body: dict[str, Any], instant: str, changes: dict[str, Any], message: str
) -> None:
    response = client.post(PATH, json=body | changes | {"instant_response": instant})
    assert (response.status_code, response.json()["message"]) == (400, message)


def test_a_prompt_that_is_too_long(client: httpx.Client, body: dict[str, Any]) -> None:
    long = {"prompt": "a cat " * 25, "prompt_syntax": "a1111"}
    response = client.post(PATH, json=body | long)
    message = "The prompt needs more chunks of 6 tokens; at most 8 are allowed."
    assert (response.status_code, response.json()["message"]) == (400, message)
    assert client.post(PATH, json=body | long | {"prompt_syntax": "plain"}).status_code == 200


def test_they_cross_to_the_engines_process(bundle_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    request = InpaintRequest(image=picture, mask=picture[..., 0] + 255, prompt="", **WORDING)
    parcel = wrap_request(draft(request, Bundle.open(bundle_path)), request.region)
    crossed = unwrap_request(parcel)
    assert {name: getattr(crossed, name) for name in WORDING} == WORDING


def test_on_the_command_line(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inpaint", "--image", str(DEMO / "photo.png"), "--mask", str(DEMO / "mask.png")]
    command += ["--prompt", "a (red:1.5) apple", "--output", str(tmp_path / "out.png"), "--json"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in WORDING.items()]
    assert main([*command, "--bundle", str(bundle_path), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps_run"] == 4
    assert main([*command, "--clip-skip", "1"]) == 2
    error = capsys.readouterr().err
    assert "--clip-skip is 1, but the model was made without it" in error
