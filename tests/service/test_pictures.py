"""Untrusted pictures at the face of the service."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.decoding import poison
from tests.service.decoding.hostile import JPEG, PNG, animation, flat, zeros, zipped
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

ROUTE = "/api/v6/realtime/inpaint"
BLACK = flat(60, 40, zeros(61 * 40))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service whose decoding processes obey what a picture's first word says."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.decoding.worker._BOOT", poison.BOOT)
        with serving(create_app(settings, StubEngine())) as running:
            yield running


def ask(client: httpx.Client, init: bytes, mask: bytes = BLACK) -> httpx.Response:
    body = {"key": "k", "prompt": "p", "width": 64, "height": 64}
    pictures = {"init_image": data_uri(init), "mask_image": data_uri(mask)}
    return client.post(ROUTE, json={**body, **pictures})


def upload(client: httpx.Client, data: bytes) -> httpx.Response:
    body = {"key": "k", "base64_string": data_uri(data)}
    return client.post("/api/v6/base64_to_url", json=body)


def test_a_crash_is_the_pictures_own_refusal(client: httpx.Client) -> None:
    answer = ask(client, b"crash")
    assert (answer.status_code, answer.json()) == (
        400,
        {"status": "error", "message": "The init image could not be decoded."},
    )
    assert ask(client, PNG).json()["status"] == "success"


def test_the_first_fields_error_is_told(client: httpx.Client) -> None:
    answer = ask(client, animation(), flat(30000, 30000, b""))
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        "The init image is an animated PNG; only still pictures are allowed."
    )
    answer = ask(client, PNG, flat(30000, 30000, b""))
    assert answer.json()["message"] == (
        "The mask image is 30000x30000 pixels; at most 16384 on a side and 25000000 in all are"
        " allowed."
    )


def test_the_limit_is_a_setting(settings: Settings) -> None:
    small = settings.model_copy(update={"picture_limit_megapixels": 1})
    with serving(create_app(small, StubEngine())) as client:
        answer = ask(client, flat(1001, 1000, zeros(1002 * 1000)))
        assert (answer.status_code, "1000000 in all" in answer.text) == (400, True)
        assert ask(client, flat(1000, 1000, zeros(1001 * 1000))).status_code == 200


@pytest.mark.parametrize("whole", [PNG, JPEG], ids=["png", "jpeg"])
def test_no_byte_of_a_picture_comes_out_again(client: httpx.Client, whole: bytes) -> None:
    """A picture that is an archive too goes in; what comes out is made from pixels alone."""
    both = whole + zipped()
    assert zipfile.is_zipfile(io.BytesIO(both))
    answer = ask(client, both).json()
    made = client.get(answer["output"][0]).content
    assert not zipfile.is_zipfile(io.BytesIO(made))
    assert b"index.html" not in made


@pytest.mark.parametrize("whole", [PNG, JPEG], ids=["png", "jpeg"])
def test_an_upload_is_cut_where_the_picture_ends(client: httpx.Client, whole: bytes) -> None:
    link = upload(client, whole + zipped()).json()["output"][0]
    assert client.get(link).content == whole


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"crash", "The base64 string could not be decoded."),
        (PNG[:-16] + bytes(4) + PNG[-12:], "The base64 string is a damaged or incomplete PNG"),
        (zipped(), "The base64 string is neither a PNG nor a JPEG picture."),
    ],
)
def test_an_upload_must_decode(client: httpx.Client, data: bytes, message: str) -> None:
    answer = upload(client, data)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(message)
