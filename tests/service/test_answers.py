"""Every kind of answer, held against the contract page's schemas and ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine import SessionError
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.contract import OURS, check_answer, validator
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

ROOT = "/api/v6/realtime"
PATH = f"{ROOT}/inpaint"


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}


@contextlib.contextmanager
def served(settings: Settings, stub: StubEngine, **changes: Any) -> Iterator[httpx.Client]:
    with serving(create_app(settings.model_copy(update=changes), stub)) as client:
        yield client


def fetched(client: httpx.Client, answer: dict[str, Any]) -> dict[str, Any]:
    while answer["status"] == "processing":
        check_answer(answer)
        answer = client.post(f"{ROOT}/fetch/{answer['id']}", json={"key": "k"}).json()
    return answer


def test_waited_queued_and_fetched(settings: Settings, body: dict[str, Any]) -> None:
    queued = body | {"instant_response": True}
    with served(settings, StubEngine(delay=0.1)) as client:
        for kind in ("inpaint", "img2img", "text2img"):
            waited = client.post(f"{ROOT}/{kind}", json=body).json()
            check_answer(waited)
            answer = fetched(client, client.post(f"{ROOT}/{kind}", json=queued).json())
            check_answer(answer)
            assert waited["status"] == answer["status"] == "success"


@pytest.mark.parametrize("mode", ["inline", "link", "data_uri"])
def test_base64(settings: Settings, body: dict[str, Any], mode: str) -> None:
    queued = body | {"base64": True, "instant_response": True}
    with served(settings, StubEngine(), base64_mode=mode) as client:
        for asked in (body | {"base64": True}, queued):
            answer = fetched(client, client.post(PATH, json=asked).json())
            check_answer(answer, formats=mode != "inline")


def test_strict_clients_get_numbers_and_words_while_it_is_processing(
    settings: Settings, body: dict[str, Any]
) -> None:
    """A null for a number, or one of these left out, makes a typed client give up."""
    with served(settings, StubEngine(delay=0.5)) as client:
        asked = body | {"instant_response": True}
        plain = client.post(PATH, json=asked).json()["meta"]
        chosen = client.post(
            PATH, json=asked | {"guidance_scale": 2, "num_inference_steps": 3, "scheduler": "lcm"}
        ).json()["meta"]
    for meta in (plain, chosen):
        for name in ("guidance_scale", "height", "n_samples", "seed", "steps", "strength", "width"):
            assert type(meta[name]) in (int, float), name
        for name in ("base64", "enhance_prompt", "file_prefix", "instant_response", "outdir"):
            assert type(meta[name]) is str, name
    defaults = StubEngine().bundle.defaults
    assert plain["guidance_scale"] == defaults.guidance_scale
    assert (plain["steps"], plain["scheduler"]) == (8, "ddim")
    assert (chosen["guidance_scale"], chosen["steps"], chosen["scheduler"]) == (2, 3, "lcm")


def test_errors(settings: Settings, body: dict[str, Any]) -> None:
    with served(settings, StubEngine(), body_limit_mb=1) as client:
        found = [
            client.post(PATH, json=body | {"prompt": None}),
            client.post(PATH, content=b"{"),
            client.post(PATH, json=body | {"key": ""}),
            client.post(f"{ROOT}/fetch/1", json={"key": "k"}),
            client.post(f"{ROOT}/fetch/\u0661", json={"key": "k"}),
            client.post("/nothing"),
            client.put(PATH),
            client.post(PATH, content=b" " * 1_000_001),
        ]
    assert [answer.status_code for answer in found] == [400, 400, 401, 404, 404, 404, 405, 413]
    for answer in found:
        check_answer(answer.json())
        assert set(answer.json()) == {"status", "message"}


def test_a_full_queue(settings: Settings, body: dict[str, Any]) -> None:
    asked = body | {"instant_response": True}
    stub = StubEngine(delay=30)
    with served(settings, stub, slots=1, queue_limit=1, queue_total=2) as client:
        keys = ("k", "k", "k", "other", "third")
        found = [client.post(PATH, json=asked | {"key": key}) for key in keys]
        stub.delay = 0  # let them go
    refused = [answer for answer in found if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429, 503}
    for answer in refused:
        check_answer(answer.json())
        assert int(answer.headers["retry-after"]) >= 1
    limited = next(answer.json() for answer in refused if answer.status_code == 429)
    assert limited["message"] == "Rate limit exceeded. Maximum 1 queued requests allowed."
    assert type(limited["retry_after"]) is int


def test_an_engine_that_fails(settings: Settings, body: dict[str, Any]) -> None:
    with served(settings, StubEngine(error=SessionError("no"))) as client:
        waited = client.post(PATH, json=body)
        queued = client.post(PATH, json=body | {"instant_response": True}).json()
        failed = fetched(client, queued)
    assert waited.status_code == 500
    for answer in (waited.json(), failed):
        check_answer(answer)
    assert failed["id"] == queued["id"]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "scheduler"])
def test_bad_requests_are_refused_before_they_are_queued(
    settings: Settings, body: dict[str, Any], field: str
) -> None:
    with served(settings, StubEngine()) as client:
        asked = body | {field: "a" * 10_001, "instant_response": True}
        assert client.post(PATH, json=asked).status_code == 400


def test_base64_to_url_and_what_takes_no_key(settings: Settings, body: dict[str, Any]) -> None:
    with served(settings, StubEngine()) as client:
        upload = {"key": "k", "base64_string": body["init_image"]}
        for slash in ("", "/"):
            link = client.post(f"/api/v6/base64_to_url{slash}", json=upload).json()
            validator(OURS, "Base64ToUrlResponse", formats=True).validate(link)
        for path in ("/livez", "/readyz"):
            validator(OURS, "HealthResponse").validate(client.get(path).json())
        for span in ("bytes=0-3", "bytes=9999999-", "nonsense"):
            picture = client.get(link["output"][0], headers={"Range": span})
            assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
