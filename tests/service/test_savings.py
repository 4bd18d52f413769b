"""What a client may give up for a quicker picture: from the request's fields to the engine."""

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
from tests.engine.tiny_savings import make_savings_bundle
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stream.steps import talking
from tests.service.test_inpaint import PATH

SAVINGS = {"vae": "fast", "guidance_share": 0.5, "deep_cache_interval": 2, "working_size": 64}
TOLD = {NAMES.get(name, name): value for name, value in SAVINGS.items()}


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_savings_bundle(tmp_path_factory.mktemp("bundles") / "saving")


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a red apple", "seed": 3, **pictures}


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
    sent = {"decoder": "FAST", "guidance_share": "0.5", "deep_cache_interval": "2"}
    sent["working_size"] = "64"
    saved = client.post(PATH, json=body | sent).json()
    assert {name: saved["meta"][name] for name in TOLD} == TOLD
    pictures = [decode_picture(client.get(a["output"][0]).content) for a in (usual, saved)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("instant", ["yes", "no"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "decoder",
            "fast",
            "The decoder is 'fast', but the model has no fast decoder; allowed: full.",
        ),
        (
            "deep_cache_interval",
            2,
            "The deep cache interval is 2, but the model has no shallow UNet; allowed: 1.",
        ),
        (
            "working_size",
            136,
            "The working size is 136; this model allows a multiple of 8 from 64 to 128.",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused_at_once(
    settings: Settings, body: dict[str, Any], instant: str, field: str, value: Any, message: str
) -> None:
    with serving(create_app(settings)) as client:
        response = client.post(PATH, json=body | {field: value, "instant_response": instant})
    assert (response.status_code, response.json()["message"]) == (400, message)


def test_what_the_hosted_service_means_by_these_names_is_not_ours(
    settings: Settings, body: dict[str, Any]
) -> None:
    hosted = {"vae": "stabilityai/sd-vae-ft-mse", "clip_skip": "2"}
    with serving(create_app(settings)) as client:
        answer = client.post(PATH, json=body | hosted).json()
    assert answer["status"] == "success"
    assert not set(hosted) & set(answer["meta"])


def test_they_cross_to_the_engines_process(bundle_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    request = InpaintRequest(image=picture, mask=picture[..., 0] + 255, prompt="", **SAVINGS)
    made = draft(request, Bundle.open(bundle_path))
    crossed = unwrap_request(wrap_request(made, "auto"))
    assert {name: getattr(crossed, name) for name in SAVINGS} == SAVINGS


def test_the_command_line_takes_them(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inpaint", "--image", str(DEMO / "photo.png"), "--mask", str(DEMO / "mask.png")]
    command += ["--prompt", "a red apple", "--output", str(tmp_path / "out.png"), "--json"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SAVINGS.items()]
    assert main([*command, "--bundle", str(bundle_path), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["steps_run"] == 4
    assert main([*command, "--vae", "fast"]) == 2
    error = capsys.readouterr().err
    assert "--vae is 'fast', but the model has no fast decoder; allowed: full" in error
    assert main([*command, "--working-size", "60"]) == 2
    assert "--working-size is 60; must be between 64 and 1024" in capsys.readouterr().err


def test_a_stream_takes_them_from_edit_to_edit(client: httpx.Client, body: dict[str, Any]) -> None:
    with talking(client) as stream:
        usual = stream.say(body).end(1)
        saved = stream.say(TOLD).end(2)
        refused = stream.say({"working_size": 136, "prompt": "a cat"}).end(3)
        again = stream.say({"seed": 3}).end(4)
        back = stream.say(dict.fromkeys(TOLD)).end(5)
    assert {name: saved["meta"][name] for name in TOLD} == TOLD
    assert (refused["type"], refused["status"]) == ("error", 400)
    assert refused["message"].startswith("The working size is 136; this model allows")
    assert again["meta"]["prompt"] == body["prompt"]
    assert saved["pictures"] == again["pictures"] != usual["pictures"]
    assert back["pictures"] == usual["pictures"]
    assert not set(TOLD) & set(back["meta"])
