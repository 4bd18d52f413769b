"""The contract of POST /api/v6/realtime/inpaint, over real HTTP, with a stub engine."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine import InputError, SessionError
from engine.image import decode_picture, encode_jpeg, sniff
from service.app import create_app
from service.safety import install
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import Origin, serving
from tests.service.stub_engine import COLOUR, StubEngine

PATH = "/api/v6/realtime/inpaint"

PAGE_EXAMPLE = """
{
    "key": "your_api_key",
    "prompt": "a cat sitting on a bench",
    "negative_prompt": "bad quality",
    "init_image": "INIT",
    "mask_image": "MASK",
    "width": "512",
    "height": "512",
    "samples": 1,
    "safety_checker": false,
    "strength": 0.7,
    "base64": false,
    "seed": null,
    "webhook": null,
    "track_id": null
}
"""


@pytest.fixture(scope="module")
def stub() -> StubEngine:
    return StubEngine()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("data"), fetch_allow=("127.0.0.1",))


@pytest.fixture(scope="module")
def client(settings: Settings, stub: StubEngine) -> Iterator[httpx.Client]:
    with serving(create_app(settings, stub)) as running:
        yield running


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    return {
        "key": "k",
        "prompt": "a cat",
        "init_image": data_uri(photo),
        "mask_image": data_uri(mask),
        "width": 96,
        "height": 64,
        "seed": 7,
    }


def check_success(answer: dict[str, Any], *, samples: int = 1) -> None:
    """The shape that strict clients of the hosted API insist on."""
    assert answer["status"] == "success"
    assert "error" not in answer
    assert isinstance(answer["generationTime"], float)
    assert type(answer["id"]) is int
    assert 1 <= answer["id"] < 2**31
    assert len(answer["output"]) == samples
    assert answer["proxy_links"] == answer["output"]
    assert answer["nsfw_content_detected"] is False
    meta = answer["meta"]
    for name in ("base64", "enhance_prompt", "instant_response", "safety_checker", "temp"):
        assert meta[name] in ("yes", "no")
    for name in ("file_prefix", "negative_prompt", "outdir", "prompt", "safety_checker_type"):
        assert isinstance(meta[name], str)
    for name in ("guidance_scale", "height", "n_samples", "seed", "width", "steps", "strength"):
        assert type(meta[name]) in (int, float)
    assert "key" not in meta
    assert (meta["outdir"], meta["safety_checker_type"]) == ("out", "black")


def test_the_pages_own_example_with_data_uris(
    client: httpx.Client, photo: bytes, mask: bytes
) -> None:
    text = PAGE_EXAMPLE.replace("INIT", data_uri(photo)).replace("MASK", data_uri(mask))
    response = client.post(PATH, content=text)
    assert response.status_code == 200
    answer = response.json()
    check_success(answer)
    assert answer["generationTime"] == 0.5
    assert answer["meta"]["prompt"] == "a cat sitting on a bench"
    assert answer["meta"]["negative_prompt"] == "bad quality"
    assert (answer["meta"]["width"], answer["meta"]["height"]) == (512, 512)
    assert (answer["meta"]["strength"], answer["meta"]["track_id"]) == (0.7, None)
    assert re.fullmatch(r"sha256:[0-9a-f]{16}", answer["meta"]["init_image"])
    picture = client.get(answer["output"][0])
    assert picture.headers["content-type"] == "image/png"
    pixels = decode_picture(picture.content)
    assert pixels.shape == (512, 512, 3)
    assert (pixels[:, :200] == COLOUR).all()


def test_the_pages_own_example_with_urls(
    client: httpx.Client, pictures: Origin, photo: bytes, mask: bytes
) -> None:
    init = pictures.body("/photo.png?size=1", photo)
    hole = pictures.redirect("/mask", pictures.body("/mask.png", mask))
    text = PAGE_EXAMPLE.replace("INIT", init).replace("MASK", hole)
    response = client.post(PATH, content=text, headers={"Content-Type": "text/plain"})
    assert response.status_code == 200
    check_success(response.json())
    assert response.json()["meta"]["init_image"] == init
    assert response.json()["meta"]["mask_image"] == hole


def test_the_picture_is_exact(client: httpx.Client, body: dict[str, Any], photo: bytes) -> None:
    answer = client.post(PATH, json=body).json()
    check_success(answer)
    assert answer["meta"]["seed"] == 7
    expected = decode_picture(photo)
    expected[:, :48] = COLOUR
    assert np.array_equal(decode_picture(client.get(answer["output"][0]).content), expected)


def test_what_reaches_the_engine(
    client: httpx.Client, body: dict[str, Any], stub: StubEngine
) -> None:
    wanted: dict[str, Any] = {
        "negative_prompt": "bad",
        "samples": "2",
        "strength": "0.5",
        "num_inference_steps": "3",
        "guidance_scale": 2,
        "scheduler": "EulerDiscreteScheduler",
        "region": "full",
    }
    check_success(client.post(PATH + "/", json=body | wanted).json(), samples=2)
    request = stub.requests[-1]
    assert (request.prompt, request.negative_prompt) == ("a cat", "bad")
    assert (request.width, request.height, request.samples) == (96, 64, 2)
    assert (request.seed, request.strength, request.num_inference_steps) == (7, 0.5, 3)
    assert (request.guidance_scale, request.scheduler, request.region) == (2.0, "euler", "full")
    assert request.image.shape == (64, 96, 3)
    assert request.mask.shape == (64, 96)


def test_samples_have_their_own_links(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post(PATH, json=body | {"samples": 4}).json()
    check_success(answer, samples=4)
    prefix = answer["meta"]["file_prefix"]
    assert len(prefix) >= 22
    assert [link.rpartition("/")[2] for link in answer["output"]] == [
        f"{prefix}-{i}.png" for i in range(4)
    ]


def test_base64_answers_hold_the_pictures(
    client: httpx.Client, body: dict[str, Any], settings: Settings
) -> None:
    before = set((settings.data_dir / "outputs").iterdir())
    for flag in (True, "yes", 1):
        answer = client.post(PATH, json=body | {"base64": flag}).json()
        check_success(answer)
        assert answer["meta"]["base64"] == "yes"
        data = base64.b64decode(answer["output"][0], validate=True)
        assert sniff(data).format == "png"
    assert set((settings.data_dir / "outputs").iterdir()) == before


def test_jpeg_answers_and_inputs(client: httpx.Client, body: dict[str, Any], photo: bytes) -> None:
    jpeg = base64.b64encode(encode_jpeg(decode_picture(photo))).decode()
    wanted = {"init_image": jpeg, "output_format": "jpg"}
    link = client.post(PATH, json=body | wanted).json()["output"][0]
    picture = client.get(link)
    assert link.endswith("-0.jpg")
    assert picture.headers["content-type"] == "image/jpeg"
    assert sniff(picture.content).format == "jpeg"


def test_random_seeds_are_told(client: httpx.Client, body: dict[str, Any]) -> None:
    seeds = {client.post(PATH, json=body | {"seed": None}).json()["meta"]["seed"] for _ in "abc"}
    assert len(seeds) == 3


def test_ids_and_names_do_not_follow_each_other(client: httpx.Client, body: dict[str, Any]) -> None:
    ids = [client.post(PATH, json=body).json()["id"] for _ in range(5)]
    assert len(set(ids)) == 5
    assert not all(b - a == 1 for a, b in zip(ids, ids[1:], strict=False))


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"key": None}, 401, "API key required"),
        ({"prompt": ""}, 400, "The prompt field is required."),
        ({"init_image": None}, 400, "The init image field is required."),
        ({"mask_image": " "}, 400, "The mask image field is required."),
        ({"width": 2048}, 400, "The width must be between 64 and 1024."),
        ({"samples": 5}, 400, "The samples must be between 1 and 4."),
        (
            {"prompt": "a" * 10_001},
            400,
            "The prompt has 10001 characters; at most 10000 characters are allowed.",
        ),
        ({"init_image": "QUJD"}, 400, "The init image is neither a PNG nor a JPEG picture."),
        ({"mask_image": "QUJD"}, 400, "The mask image is neither a PNG nor a JPEG picture."),
        ({"mask_image": "!"}, 400, "The mask image is not valid base64."),
        (
            {"init_image": "http://10.0.0.1/a.png", "mask_image": "!"},
            400,
            "The init image could not be fetched from its URL.",
        ),
        (
            {"safety_checker": True},
            503,
            f"The safety checker is not available on this server; `{install()}` and a restart mend "
            "that.",
        ),
        ({"webhook": "ftp://a/b"}, 400, "The webhook must be an http or https URL."),
        ({"webhook": "nonsense"}, 400, "The webhook must be an http or https URL."),
    ],
)
def test_errors(
    client: httpx.Client, body: dict[str, Any], change: dict[str, Any], status: int, message: str
) -> None:
    response = client.post(PATH, json=body | change)
    assert response.status_code == status
    assert response.json() == {"status": "error", "message": message}


def test_a_damaged_picture_is_the_clients_error(
    client: httpx.Client, body: dict[str, Any], photo: bytes
) -> None:
    half = base64.b64encode(photo[: len(photo) // 2]).decode()
    response = client.post(PATH, json=body | {"mask_image": half})
    assert response.status_code == 400
    assert response.json()["message"].startswith("The mask image is a ")


def test_keys(
    settings: Settings, stub: StubEngine, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEYS", "first,second")
    with_keys = Settings(data_dir=settings.data_dir)
    with serving(create_app(with_keys, stub)) as client:
        assert client.post(PATH, json=body | {"key": "second"}).status_code == 200
        wrong = client.post(PATH, json=body | {"key": "third"})
        assert (wrong.status_code, wrong.json()["message"]) == (401, "Invalid API key")
        del body["key"]
        assert client.post(PATH, json=body, headers={"key": "first"}).status_code == 200
        bearer = {"Authorization": "Bearer first"}
        assert client.post(PATH, json=body, headers=bearer).status_code == 200
        assert client.post(PATH, content=b"{").json()["message"].endswith("not valid JSON.")


def test_the_key_is_not_logged(
    client: httpx.Client, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = json.dumps(body | {"key": "very-secret", "prompt": "a private wish"})
    assert client.post(PATH, content=text).status_code == 200
    assert "job " in caplog.text
    assert "very-secret" not in caplog.text
    assert "private wish" not in caplog.text


def test_engine_failures(settings: Settings, body: dict[str, Any]) -> None:
    cases = [
        (SessionError("cuda at 0x7f says no"), 500, "The engine failed to make the picture."),
        (InputError("seed", "is 'x'; allowed: y"), 400, "The seed is 'x'; allowed: y."),
    ]
    for error, status, message in cases:
        with serving(create_app(settings, StubEngine(error=error))) as client:
            response = client.post(PATH, json=body)
        assert (response.status_code, response.json()["message"]) == (status, message)


def test_defects_are_answered_in_the_same_shape(settings: Settings, body: dict[str, Any]) -> None:
    with serving(create_app(settings, StubEngine(error=KeyError("defect")))) as client:
        response = client.post(PATH, json=body)
    assert response.status_code == 500
    assert response.json() == {
        "status": "error",
        "message": "The engine failed to make the picture.",
    }


def test_outputs_that_cannot_be_kept_are_an_error(body: dict[str, Any], tmp_path: Path) -> None:
    with serving(create_app(Settings(data_dir=tmp_path), StubEngine())) as client:
        folder = tmp_path / "outputs"
        folder.rmdir()
        folder.write_text("in the way")
        assert client.get("/readyz").status_code == 503
        response = client.post(PATH, json=body)
    assert response.status_code == 503
    assert response.json()["message"] == "The storage for pictures cannot be used now."
