"""The official Python SDK, unchanged but for its base URL, against ``edgefill serve``: a real
process, a real socket and the model that ships with Edgefill."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests

from engine.image import decode_mask, decode_picture, sniff
from service.commands.inpaint import DEMO
from tests.service.conftest import data_uri
from tests.service.contract import EXAMPLE, check_answer
from tests.service.live import Origin, origin

ROOT = Path(__file__).parents[2]
PHOTO, MASK = ((DEMO / name).read_bytes() for name in ("photo.png", "mask.png"))
SMALL: dict[str, Any] = {"width": 96, "height": 64, "num_inference_steps": 2, "seed": 7}
PICTURES = {"init_image": data_uri(PHOTO), "mask_image": data_uri(MASK)}

# the SDK's own models are written for pydantic 1
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated.*:pydantic.warnings.PydanticDeprecatedSince20"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that was started as a user starts it."""
    folder = tmp_path_factory.mktemp("server")
    environment = {name: value for name, value in os.environ.items() if "EDGEFILL" not in name}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "EDGEFILL_API_KEYS": f"local-key,{EXAMPLE['key']}",
        "EDGEFILL_DATA_DIR": str(folder / "data"),
        "EDGEFILL_FETCH_ALLOW": "127.0.0.1",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=stderr)
    try:
        found = None
        deadline = time.monotonic() + 60
        while found is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            found = re.search(r"serving: (http://127\.0\.0\.1:\d+) ", log.read_text())
        assert found is not None, log.read_text()
        while requests.get(found[1] + "/readyz", timeout=20).status_code != 200:
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


@pytest.fixture
def schemas() -> ModuleType:
    import modelslab_py.schemas.realtime

    return modelslab_py.schemas.realtime


def realtime(server: str, *, key: str = "local-key", enterprise: bool = False) -> Any:
    """The SDK's face of the family; the base URL is set before, and ends in a slash."""
    from modelslab_py.core.apis.realtime import Realtime
    from modelslab_py.core.client import Client

    client = Client(api_key=key, fetch_retry=400, fetch_timeout=0.05)
    client.base_url = f"{server}/api/"
    return Realtime(client=client, enterprise=enterprise)


@pytest.fixture
def api(server: str, schemas: ModuleType) -> Any:
    return realtime(server)


def picture(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The first picture of an answer, downloaded as any client does."""
    response = requests.get(answer["output"][0], timeout=20)
    assert response.status_code == 200
    return decode_picture(response.content)


@pytest.mark.parametrize("enterprise", [False, True])
def test_inpaint(server: str, schemas: ModuleType, enterprise: bool) -> None:
    asked = schemas.RealtimeInpaintingSchema(prompt="a sunflower", **PICTURES, **SMALL)
    answer = realtime(server, enterprise=enterprise).inpainting(asked)
    check_answer(answer)
    assert answer["status"] == "success"
    assert picture(answer).shape == (64, 96, 3)
    assert answer["meta"]["seed"] == 7
    assert answer["meta"]["steps"] == 2


def test_img2img_and_text2img(
    api: Any, schemas: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    init = {"init_image": PICTURES["init_image"]}
    painted = api.image_to_image(
        schemas.RealtimeImage2ImageSchema(prompt="a field", strength=0.5, **init, **SMALL)
    )
    made = api.text_to_image(
        schemas.RealtimeText2ImageSchema(prompt="a field", samples=2, guidance_scale=2, **SMALL)
    )
    for answer, count in ((painted, 1), (made, 2)):
        check_answer(answer)
        assert answer["status"] == "success"
        assert len(answer["output"]) == count
        assert picture(answer).shape == (64, 96, 3)
    assert "success" in capsys.readouterr().out  # the SDK prints this one


def test_queued_and_fetched(api: Any, schemas: ModuleType) -> None:
    asked = {"prompt": "a sunflower", **PICTURES, **SMALL}
    waited = api.inpainting(schemas.RealtimeInpaintingSchema(**asked))
    queued = api.inpainting(
        schemas.RealtimeInpaintingSchema(**asked, instant_response=True, track_id="t-1")
    )
    check_answer(queued)
    assert queued["status"] == "processing"
    fetched = api.fetch(str(queued["id"]))
    check_answer(fetched)
    assert fetched["status"] == "success"
    assert (fetched["id"], fetched["output"]) == (queued["id"], queued["future_links"])
    assert fetched["meta"]["track_id"] == "t-1"
    assert np.array_equal(picture(fetched), picture(waited))  # the same seed, the same picture


def test_base64(api: Any, schemas: ModuleType) -> None:
    bare = {name: uri.partition(",")[2] for name, uri in PICTURES.items()}
    asked = schemas.RealtimeInpaintingSchema(prompt="a sunflower", base64=True, **bare, **SMALL)
    answer = api.inpainting(asked)
    check_answer(answer, formats=False)
    assert sniff(base64.b64decode(answer["output"][0], validate=True)).format == "png"


def test_a_request_that_fails_after_it_was_accepted(api: Any, schemas: ModuleType) -> None:
    """A 200 that says error: the SDK asks to the end, then gives it back."""
    api.client.fetch_retry = 20
    pictures = PICTURES | {"init_image": "http://10.0.0.1/a.png"}
    asked = schemas.RealtimeInpaintingSchema(prompt="p", instant_response=True, **pictures, **SMALL)
    queued = api.inpainting(asked)
    failed = api.fetch(str(queued["id"]))
    check_answer(failed)
    assert failed == {
        "status": "error",
        "message": "The init image could not be fetched from its URL.",
        "id": queued["id"],
    }


@pytest.mark.parametrize(
    ("key", "change", "status", "message"),
    [
        ("wrong", {}, 401, "Invalid API key"),
        ("local-key", {"prompt": " "}, 400, "The prompt field is required."),
        ("local-key", {"mask_image": None}, 400, "The mask image field is required."),
        ("local-key", {"width": 2048}, 400, "The width must be between 64 and 1024."),
        ("local-key", {"init_image": "QUJD"}, 400, "The init image is neither a PNG nor a JPEG"),
    ],
)
def test_errors(
    server: str, schemas: ModuleType, key: str, change: dict[str, Any], status: int, message: str
) -> None:
    asked = schemas.RealtimeInpaintingSchema(**{"prompt": "p", **PICTURES, **SMALL, **change})
    with pytest.raises(Exception, match=f"status code {status}: .*{message}") as caught:
        realtime(server, key=key).inpainting(asked)
    check_answer(json.loads(str(caught.value).partition(": ")[2]))


def test_an_unknown_id(api: Any) -> None:
    with pytest.raises(Exception, match=r"status code 404: .*Request not found"):
        api.fetch("1")


@pytest.fixture
def hosted() -> Iterator[tuple[Origin, dict[str, Any]]]:
    """The page's example, and an origin that serves its two pictures under their paths."""
    with origin() as running:
        example = dict(EXAMPLE)
        for name, data in (("init_image", PHOTO), ("mask_image", MASK)):
            path = example[name].removeprefix("https://raw.githubusercontent.com")
            example[name] = running.body(path, data)
        yield running, example


def test_the_pages_own_example(
    server: str, schemas: ModuleType, hosted: tuple[Origin, dict[str, Any]]
) -> None:
    """Word for word, but for the host of the two pictures: over the wire, and through the SDK."""
    running, example = hosted
    assert (example["width"], example["samples"], example["seed"]) == ("512", 1, None)
    wired = requests.post(f"{server}/api/v6/realtime/inpaint", json=example, timeout=60).json()
    fields = {name: value for name, value in example.items() if name != "key"}
    driven = realtime(server, key=example["key"]).inpainting(
        schemas.RealtimeInpaintingSchema(**fields, num_inference_steps=2)
    )
    assert running.connections == 4
    for answer in (wired, driven):
        check_answer(answer)
        assert answer["status"] == "success"
        assert answer["meta"]["init_image"] == example["init_image"]
        assert answer["meta"]["negative_prompt"] == "bad quality"
    before, hole = decode_picture(PHOTO), decode_mask(MASK) >= 128
    made = picture(wired)
    assert made.shape == (512, 512, 3)
    assert np.array_equal(made[~hole], before[~hole])
    assert np.abs(made[hole].astype(int) - before[hole]).mean() > 10


def test_the_pages_own_example_with_data_uris(server: str) -> None:
    small = EXAMPLE | PICTURES | {"width": "96", "height": "64"}
    answer = requests.post(f"{server}/api/v6/realtime/inpaint", json=small, timeout=60).json()
    check_answer(answer)
    assert answer["status"] == "success"
    assert picture(answer).shape == (64, 96, 3)
