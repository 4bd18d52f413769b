"""Queued answers: nothing that was answered ``processing`` is lost, and everybody is told."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from engine.image import decode_picture
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine

ROOT = "/api/v6/realtime"
PATH = f"{ROOT}/inpaint"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(create_app(settings, StubEngine(delay=0.2))) as running:
        yield running


def fetched(client: httpx.Client, answer: dict[str, Any], key: str = "k") -> dict[str, Any]:
    """Poll as clients do, until it is no longer processing."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        response = client.post(answer["fetch_result"], json={"key": key})
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        if found["status"] != "processing":
            return found
        time.sleep(0.05)
    raise AssertionError("it was never done")


def test_an_instant_answer_and_the_picture_later(
    client: httpx.Client, body: dict[str, Any]
) -> None:
    answer = client.post(PATH, json=body | {"instant_response": True, "track_id": "t"}).json()
    assert answer["status"] == "processing"
    assert answer["message"] == "Try to fetch request after seconds estimated"
    assert answer["tip"].startswith("Your image is processing in background")
    assert answer["output"] == []
    assert 1 <= answer["eta"] <= 60
    assert 1 <= answer["id"] < 2**31
    assert answer["meta"]["track_id"] == "t"
    done = fetched(client, answer)
    assert done["status"] == "success"
    assert done["id"] == answer["id"]
    assert done["output"] == answer["future_links"]
    assert client.get(done["output"][0]).status_code == 200
    assert fetched(client, answer) == done  # as often as one likes
    assert client.get(answer["fetch_result"], headers={"key": "k"}).json() == done


def test_the_wait_budget_ends_in_processing(settings: Settings, body: dict[str, Any]) -> None:
    impatient = settings.model_copy(update={"wait_seconds": 0.1})
    with serving(create_app(impatient, StubEngine(delay=0.5))) as client:
        answer = client.post(PATH, json=body).json()
        assert answer["status"] == "processing"
        assert fetched(client, answer)["status"] == "success"


def test_links_are_404_until_the_picture_is_there(settings: Settings, body: dict[str, Any]) -> None:
    with serving(create_app(settings, StubEngine(delay=1.0))) as client:
        answer = client.post(PATH, json=body | {"instant_response": True}).json()
        assert client.get(answer["future_links"][0]).status_code == 404
        fetched(client, answer)
        assert client.get(answer["future_links"][0]).status_code == 200


@pytest.mark.parametrize("job_id", ["1", "0", "abc", "99999999999", "-1", "1.0", "%31"])
def test_unknown_ids(client: httpx.Client, job_id: str) -> None:
    response = client.post(f"{ROOT}/fetch/{job_id}", json={"key": "k"})
    assert response.status_code == 404
    assert response.json() == {"status": "error", "message": "Request not found"}


def test_another_keys_job_is_not_there(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post(PATH, json=body | {"instant_response": True}).json()
    assert client.post(answer["fetch_result"], json={"key": "other"}).status_code == 404
    assert client.post(answer["fetch_result"]).status_code == 401
    assert fetched(client, answer)["status"] == "success"


def test_a_job_that_fails_after_it_was_accepted(
    client: httpx.Client, body: dict[str, Any], pictures: Origin
) -> None:
    broken = body | {"instant_response": True, "init_image": f"{pictures.url}/gone.png"}
    answer = client.post(PATH, json=broken).json()
    done = fetched(client, answer)
    assert done == {
        "status": "error",
        "message": "The init image could not be fetched from its URL.",
        "id": answer["id"],
    }


def test_a_full_queue(settings: Settings, body: dict[str, Any]) -> None:
    small = settings.model_copy(update={"queue_limit": 2, "queue_total": 3, "slots": 1})
    queued = body | {"instant_response": True}
    with serving(create_app(small, StubEngine(delay=1.0))) as client:
        client.post(PATH, json=queued)
        time.sleep(0.3)  # the first one is at work now
        for _ in range(2):
            assert client.post(PATH, json=queued).status_code == 200
        refused = client.post(PATH, json=queued)
        assert refused.status_code == 429
        message = "Rate limit exceeded. Maximum 2 queued requests allowed."
        assert refused.json()["message"] == message
        assert refused.json()["retry_after"] == int(refused.headers["retry-after"])
        assert client.post(PATH, json=queued | {"key": "other"}).status_code == 200
        assert client.post(PATH, json=queued | {"key": "third"}).status_code == 503


@pytest.mark.parametrize("mode", ["inline", "link", "data_uri"])
def test_base64_in_each_mode(settings: Settings, body: dict[str, Any], mode: str) -> None:
    changed = settings.model_copy(update={"base64_mode": mode})
    with serving(create_app(changed, StubEngine())) as client:
        (output,) = client.post(PATH, json=body | {"base64": True}).json()["output"]
        if mode == "link":
            assert output.endswith("-0.base64")
            output = client.get(output).text
        if mode == "data_uri":
            head, output = output.split(",")
            assert head == "data:image/png;base64"
        assert decode_picture(base64.b64decode(output, validate=True)).shape == (64, 96, 3)


def test_an_uploaded_picture_is_a_link_that_can_be_sent(
    client: httpx.Client, body: dict[str, Any]
) -> None:
    asks = {"key": "k", "base64_string": body["init_image"]}
    answer = client.post("/api/v6/base64_to_url", json=asks).json()
    assert answer["status"] == "success"
    (link,) = answer["output"]
    assert client.get(link).headers["content-type"] == "image/png"
    painted = client.post(PATH, json=body | {"init_image": link}).json()
    assert painted["status"] == "success"
    assert painted["meta"]["init_image"] == link
    for wrong, message in (
        ("", "The base64 string field is required."),
        ("QUJD", "The base64 string is neither a PNG nor a JPEG picture."),
        ("http://a.example/b.png", "The base64 string must be a data URI or base64."),
    ):
        refused = client.post("/api/v6/base64_to_url", json={"key": "k", "base64_string": wrong})
        assert (refused.status_code, refused.json()["message"]) == (400, message)


def test_a_client_that_leaves_frees_its_place(settings: Settings, body: dict[str, Any]) -> None:
    one = settings.model_copy(update={"slots": 1, "queue_limit": 1})
    stub = StubEngine(delay=30)
    with serving(create_app(one, stub)) as client:
        for _ in range(2):  # at work, and then waiting behind it
            with pytest.raises(httpx.ReadTimeout):
                client.post(PATH, json=body, timeout=0.4)
        assert stub.cancelled.wait(5)
        assert client.post(PATH, json=body | {"instant_response": True}).status_code == 200
        stub.delay = 0


class Receiver:
    """Takes webhooks; the first ``failures`` of them are answered with 503."""

    def __init__(self, pictures: Origin, failures: int = 0) -> None:
        self.failures = failures
        self.taken = threading.Event()
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.url = pictures.url + "/hook"
        pictures.answers["/hook"] = self.answer

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        self.calls.append((dict(handler.headers), handler.rfile.read(length)))
        fails = len(self.calls) <= self.failures
        handler.send_response(503 if fails else 204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        if not fails:
            self.taken.set()


@pytest.mark.parametrize("waited", [True, False])
def test_webhooks_are_signed_and_delivered(
    settings: Settings, body: dict[str, Any], pictures: Origin, waited: bool
) -> None:
    from pydantic import SecretStr

    signing = settings.model_copy(update={"webhook_secret": SecretStr(SECRET)})
    receiver = Receiver(pictures)
    asks = body | {"webhook": receiver.url, "track_id": 7, "instant_response": not waited}
    with serving(create_app(signing, StubEngine(delay=0.1))) as client:
        answer = client.post(PATH, json=asks).json()
        assert receiver.taken.wait(10)
    headers, payload = receiver.calls[0]
    told = Webhook(SECRET).verify(payload, {k.lower(): v for k, v in headers.items()})
    assert told["status"] == "success"
    assert told["id"] == answer["id"]
    assert told["track_id"] == 7
    assert told["output"] == (answer["output"] or answer["future_links"])


def test_a_webhook_links_to_what_the_answer_holds(
    settings: Settings, body: dict[str, Any], pictures: Origin
) -> None:
    receiver = Receiver(pictures)
    asks = body | {"webhook": receiver.url, "base64": True}
    with serving(create_app(settings, StubEngine())) as client:
        (text,) = client.post(PATH, json=asks).json()["output"]
        assert receiver.taken.wait(10)
        (link,) = json.loads(receiver.calls[0][1])["output"]
        assert client.get(link).content == base64.b64decode(text)


def test_failures_are_told_too(settings: Settings, body: dict[str, Any], pictures: Origin) -> None:
    receiver = Receiver(pictures)
    asks = body | {"webhook": receiver.url, "track_id": "x", "init_image": "QUJD"}
    with serving(create_app(settings, StubEngine())) as client:
        assert client.post(PATH, json=asks).status_code == 400
        assert receiver.taken.wait(10)
    told = json.loads(receiver.calls[0][1])
    assert told["status"] == "failed"
    assert told["message"] == "The init image is neither a PNG nor a JPEG picture."
    assert told["track_id"] == "x"


def test_webhooks_do_not_reach_the_inside(settings: Settings, body: dict[str, Any]) -> None:
    """The same policy as for pictures: nothing is sent to addresses that are not permitted."""
    with serving(
        create_app(settings.model_copy(update={"fetch_allow": ()}), StubEngine())
    ) as client:
        where = str(client.base_url)
        answer = client.post(PATH, json=body | {"webhook": f"{where}/livez"}).json()
        assert answer["status"] == "success"


def test_what_waits_when_the_server_stops_is_done_by_the_next(
    settings: Settings, body: dict[str, Any]
) -> None:
    one = settings.model_copy(update={"slots": 1, "public_url": "http://127.0.0.1"})
    queued = body | {"instant_response": True}
    with serving(create_app(one, StubEngine(delay=0.5))) as client:
        answers = [client.post(PATH, json=queued | {"seed": i}).json() for i in range(4)]
        seeds = [answer["meta"]["seed"] for answer in answers]
    with serving(create_app(one, StubEngine())) as client:
        for answer, seed in zip(answers, seeds, strict=True):
            path = answer["fetch_result"].removeprefix("http://127.0.0.1")
            done = fetched(client, answer | {"fetch_result": path})
            assert done["status"] == "success"
            assert done["meta"]["seed"] == seed


def test_answers_and_pictures_expire(settings: Settings, body: dict[str, Any]) -> None:
    from service.endpoints import expiry
    from service.jobs import JobStore, default_url, new_boot_id
    from service.storage import open_storage

    with serving(create_app(settings, StubEngine())) as client:
        client.post(PATH, json=body)
    outputs = open_storage(None, settings.data_dir)
    assert len(list((settings.data_dir / "outputs").iterdir())) == 1
    late = JobStore.open(
        default_url(settings.data_dir), boot_id=new_boot_id(), clock=lambda: time.time() + 7200
    )
    asyncio.run(expiry(late, outputs, retention=3600))
    assert len(list((settings.data_dir / "outputs").iterdir())) == 1  # not by the real clock
    time.sleep(0.05)
    asyncio.run(expiry(late, outputs, retention=0.01))
    assert not list((settings.data_dir / "outputs").iterdir())
    late.close()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("init_image", "data:image/png;base64,aGVsbG8=", "is neither a PNG nor a JPEG"),
        ("mask_image", "****", "is not valid base64"),
        ("init_image", "ftp://a.example/b.png", "must be an http or https URL"),
        ("mask_image", "data:image/png,plain", "is a data URI without base64"),
    ],
)
def test_what_is_no_picture_is_refused_before_it_is_queued(
    client: httpx.Client, body: dict[str, Any], field: str, value: str, words: str
) -> None:
    response = client.post(PATH, json=body | {"instant_response": True, field: value})
    assert response.status_code == 400
    assert words in response.json()["message"]
    assert response.json()["message"].startswith(f"The {field.replace('_', ' ')} ")
