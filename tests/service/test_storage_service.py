"""The whole service with its pictures in S3, also while S3 is away."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.image import decode_picture
from service.app import create_app
from service.endpoints import expiry
from service.jobs import JobStore, default_url, new_boot_id
from service.settings import Settings
from service.storage import objects, open_storage
from service.storage.base import UNUSABLE
from tests.service.bucket import S3, s3_server
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine

PATH = "/api/v6/realtime/inpaint"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setattr(objects, "FIRST_LETTERS", "abc")  # a sweep of all 64 takes seconds here
    with s3_server(monkeypatch) as server:
        yield server


@pytest.fixture
def settings(s3: S3, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", storage_url=s3.url, slots=1)


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, **pictures}


def path_of(link: str) -> str:
    """The path of a link, whose port is another one after a restart."""
    return httpx.URL(link).path


def fetched(client: httpx.Client, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of a queued job once it is not ``processing`` any more."""
    deadline = time.monotonic() + 20
    while True:
        found = client.post(path_of(answer["fetch_result"]), json={"key": "k"}).json()
        if found["status"] != "processing":
            return dict(found)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_everything_works_on_s3(settings: Settings, s3: S3, body: dict[str, Any]) -> None:
    with serving(create_app(settings, StubEngine())) as client:
        assert client.get("/readyz").status_code == 200
        waited = client.post(PATH, json=body | {"samples": 2}).json()
        assert waited["status"] == "success"
        assert len(waited["output"]) == 2
        for link in waited["output"]:
            got, head = client.get(link), client.head(link)
            for response in (got, head):
                assert response.status_code == 200
                assert response.headers["content-type"] == "image/png"
                assert response.headers["x-content-type-options"] == "nosniff"
                assert response.headers["access-control-allow-origin"] == "*"
            for name in ("content-length", "etag", "last-modified"):
                assert got.headers[name] == head.headers[name]
            assert int(got.headers["content-length"]) == len(got.content)
            assert head.content == b""
            assert decode_picture(got.content, field="init_image").shape == (64, 96, 3)
        missing = client.get("/outputs/" + "a" * 24 + "-0.png")
        assert missing.status_code == 404
        assert missing.json()["status"] == "error"

        encoded = {"base64_string": data_uri(client.get(link).content), "key": "k"}
        upload = client.post("/api/v6/base64_to_url", json=encoded).json()["output"][0]
        again = client.post(PATH, json=body | {"init_image": upload}).json()
        assert again["status"] == "success"
        gone = upload.replace(upload.rpartition("/")[2], "a" * 24 + "-0.png")
        refused = client.post(PATH, json=body | {"init_image": gone})
        assert refused.json()["message"] == "The init image is no longer there."

        queued = client.post(PATH, json=body | {"instant_response": True}).json()
        assert queued["status"] == "processing"
    with serving(create_app(settings, StubEngine())) as client:
        done = fetched(client, queued)
        assert done["status"] == "success"
        assert done["output"] == queued["future_links"]
        assert client.get(path_of(done["output"][0])).status_code == 200
    assert len(s3.names()) == 1 + 2 + 1 + 1 + 1

    async def expire() -> None:
        late = JobStore.open(
            default_url(settings.data_dir), boot_id=new_boot_id(), clock=lambda: time.time() + 7200
        )
        outputs = open_storage(settings.storage_url, settings.data_dir)
        await outputs.open()
        await expiry(late, outputs, retention=-60)
        await outputs.close()
        late.close()

    asyncio.run(expire())
    left = [key for key in s3.names() if path_of(upload).rpartition("/")[2] not in key]
    assert left == ["some/prefix/.edgefill"]


def test_links_to_base64_text(settings: Settings, body: dict[str, Any]) -> None:
    linked = settings.model_copy(update={"base64_mode": "link"})
    with serving(create_app(linked, StubEngine())) as client:
        link = client.post(PATH, json=body | {"base64": True}).json()["output"][0]
        text = client.get(link)
    assert text.headers["content-type"].startswith("text/plain")
    assert decode_picture(base64.b64decode(text.text), field="init_image").shape == (64, 96, 3)


def test_while_s3_is_away_what_waits_goes_on_waiting(
    settings: Settings, s3: S3, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAUSES", (0.01,))
    stub = StubEngine()
    with serving(create_app(settings, stub)) as client:
        link = client.post(PATH, json=body).json()["output"][0]
        queued = body | {"instant_response": True}
        stub.delay = 60
        begun = client.post(PATH, json=queued).json()
        waiting = client.post(PATH, json=queued).json()
        while len(stub.requests) < 2:
            time.sleep(0.01)
        s3.stop()
        stub.delay = 0
        assert fetched(client, begun)["message"] == UNUSABLE
        monkeypatch.setattr(objects, "PROBE_EVERY", 0.1)
        assert client.get("/livez").status_code == 200
        for response in (client.get("/readyz"), client.post(PATH, json=body), client.get(link)):
            assert response.status_code == 503
            assert response.json().items() >= {"status": "error", "message": UNUSABLE}.items()
            assert int(response.headers["retry-after"]) > 0
        asked = len(stub.requests)
        path = path_of(waiting["fetch_result"])
        assert client.post(path, json={"key": "k"}).json()["status"] == "processing"
        s3.start()
        assert fetched(client, waiting)["status"] == "success"
        assert len(stub.requests) == asked + 1
        assert client.get("/readyz").status_code == 200
        assert client.post(PATH, json=body).json()["status"] == "success"


def test_a_request_that_is_waited_for_says_that_it_failed(
    settings: Settings, s3: S3, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAUSES", ())
    with serving(create_app(settings, StubEngine())) as client:
        s3.stop()
        response = client.post(PATH, json=body)
        s3.start()
    assert response.status_code == 503
    assert response.json() == {"status": "error", "message": UNUSABLE}
