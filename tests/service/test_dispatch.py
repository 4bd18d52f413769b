"""Jobs end for the reason that they end for, and nobody waits beside a free slot."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import DeviceLost, InpaintRequest
from engine.ticket import Ticket
from service.app import create_app
from service.dispatch import Dispatcher
from service.jobs import JobStore, Limits, NewJob, State, StoreError, default_url
from service.jobs.store import OVERDUE
from service.runner import LATE, LEFT
from service.settings import Settings
from service.watch import STOPPED
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import until
from tests.service.live import Origin, serving
from tests.service.stub_engine import StubEngine
from tests.service.test_queue import PATH, Receiver, fetched


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}


def _jobs(settings: Settings) -> list[tuple[State, str | None]]:
    store = JobStore.open(default_url(settings.data_dir))
    try:
        return [(job.state, job.message) for job in store.list_jobs()]
    finally:
        store.close()


def _told(receiver: Receiver) -> dict[str, Any]:
    assert receiver.taken.wait(10)
    told: dict[str, Any] = json.loads(receiver.calls[0][1])
    return told


@pytest.mark.parametrize("slow", [("init_image",), ("init_image", "mask_image")])
def test_a_client_that_leaves_while_its_pictures_are_fetched(
    settings: Settings, body: dict[str, Any], pictures: Origin, slow: tuple[str, ...]
) -> None:
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        over.wait(20)

    pictures.answers["/slow.png"] = answer
    asks = body | dict.fromkeys(slow, pictures.url + "/slow.png")
    with serving(create_app(settings, StubEngine())) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(PATH, json=asks, timeout=0.5)
        until(lambda: _jobs(settings) == [(State.FAILED, LEFT)])
        over.set()


def test_work_stops_at_the_deadline(
    settings: Settings, body: dict[str, Any], pictures: Origin
) -> None:
    receiver, stub = Receiver(pictures), StubEngine(delay=30)
    queued = {"deadline_ms": 200, "instant_response": True, "webhook": receiver.url}
    with serving(create_app(settings, stub)) as client:
        answer = client.post(PATH, json=body | queued).json()
        assert fetched(client, answer)["message"] == LATE
        assert stub.cancelled.wait(5)
    assert _told(receiver)["message"] == LATE


@pytest.mark.parametrize("waits", [True, False])
def test_deadlines_pass_while_every_slot_is_taken(
    settings: Settings, body: dict[str, Any], pictures: Origin, waits: bool
) -> None:
    receiver, stub = Receiver(pictures), StubEngine(delay=30)
    one = settings.model_copy(update={"slots": 1, "queue_limit": 1})
    asks = {"deadline_ms": 100, "webhook": receiver.url, "instant_response": not waits}
    with serving(create_app(one, stub)) as client:
        client.post(PATH, json=body | {"instant_response": True})
        response = client.post(PATH, json=body | asks)
        if waits:
            assert (response.status_code, response.json()["message"]) == (503, OVERDUE)
            assert response.headers["retry-after"]
        else:
            assert fetched(client, response.json())["message"] == OVERDUE
        assert _told(receiver)["message"] == OVERDUE
        free = client.post(PATH, json=body | {"instant_response": True})
        assert free.status_code == 200  # its key's only place
        stub.delay = 0


def test_a_waited_deadline_is_told_as_one(
    settings: Settings, body: dict[str, Any], pictures: Origin
) -> None:
    receiver = Receiver(pictures)
    asks = body | {"deadline_ms": 150, "webhook": receiver.url}
    with serving(create_app(settings, StubEngine(delay=30))) as client:
        response = client.post(PATH, json=asks)
    assert (response.status_code, response.json()["message"]) == (503, LATE)
    assert _told(receiver)["message"] == LATE


class DyingEngine(StubEngine):
    """Gives up when told."""

    state = "ready"

    def submit(self, request: InpaintRequest, **options: Any) -> Ticket:
        if self.state == "stopped":
            raise DeviceLost("the engine has given up")
        return super().submit(request, **options)


def test_what_waits_is_kept_for_a_process_whose_engine_works(
    settings: Settings, body: dict[str, Any]
) -> None:
    dying = DyingEngine(delay=0.5)
    one = settings.model_copy(update={"slots": 1})
    with serving(create_app(one, dying)) as client:
        answers = [client.post(PATH, json=body | {"instant_response": True}) for _ in range(4)]
        dying.state = "stopped"
        refused = client.post(PATH, json=body)
        assert (refused.status_code, refused.json()["message"]) == (503, STOPPED)
        until(lambda: [state for state, _ in _jobs(one)].count(State.DONE) == 1)
        time.sleep(0.3)
    assert sorted(state for state, _ in _jobs(one)) == [State.DONE, *[State.QUEUED] * 3]
    with serving(create_app(one, StubEngine())) as client:
        for answer in answers:
            job_id = answer.json()["id"]
            done = {"fetch_result": f"/api/v6/realtime/fetch/{job_id}"}
            assert fetched(client, done)["status"] == "success"


def test_a_slot_that_was_held_for_a_refused_request_is_used(
    settings: Settings, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, first, second = JobStore.accept, threading.Event(), threading.Event()

    def slow_first(store: JobStore, new: NewJob, **how: Any) -> Any:
        if not first.is_set():
            first.set()
            assert second.wait(10)
            raise StoreError("the disk failed")
        return accept(store, new, **how)

    one = settings.model_copy(update={"slots": 1})
    with serving(create_app(one, StubEngine())) as client:
        client.post(PATH, json=body)
        monkeypatch.setattr(JobStore, "accept", slow_first)
        statuses = []

        def ask() -> None:
            statuses.append(client.post(PATH, json=body).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        assert first.wait(10)
        answer = client.post(PATH, json=body | {"instant_response": True}).json()
        second.set()
        thread.join(10)
        assert statuses == [503]
        assert fetched(client, answer)["status"] == "success"


def test_no_key_has_every_place_while_another_waits(tmp_path: Path) -> None:
    store = JobStore.open(default_url(tmp_path))
    limits = Limits(per_key=20, total=20)
    for key in "AAAAABAC":
        new = NewJob(kind="inpaint", key=key, request="{}", file_prefix=key)
        store.accept(new, limits=limits)
    order = [job.file_prefix for _ in range(4) for job in store.claim(1, share=2)]
    assert "".join(order) == "AABC"
    order += [job.file_prefix for job in store.claim(9, share=2)]
    assert "".join(order) == "AABCAAAA"  # nobody else waits
    store.close()


def test_edits_do_not_wait_for_jobs_that_the_storage_keeps_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dispatch.RETRY_SECONDS", 3600)
    store = JobStore.open(default_url(tmp_path))
    asked = asyncio.Event()

    async def trouble() -> str:
        asked.set()
        return "disk full"

    async def edits() -> int:
        painter: Any = None  # nothing is painted
        limits = Limits(per_key=5, total=5)
        queue = Dispatcher(store, painter, slots=1, limits=limits, trouble=trouble)
        await queue.start()
        await asyncio.wait_for(asked.wait(), 10)
        made = 0
        for _ in range(3):
            queue._waiting = True  # another job came
            async with asyncio.timeout(10), queue.places.place():
                made += 1
        return made

    assert asyncio.run(edits()) == 3
    store.close()
