"""A full queue refuses at once and at little cost, and no longer than it is full."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.commands.serve import listener
from service.decoding import PictureDecoder
from service.dispatch import Dispatcher
from service.errors import ApiError
from service.inputs import PictureReader
from service.jobs import Job, JobStore, Limits, QueueFull, State, default_url
from service.painter import Painter
from service.schema import InpaintBody
from service.settings import Settings
from service.storage import FOLDER, open_storage
from tests.service.conftest import data_uri
from tests.service.live import serving
from tests.service.stub_engine import StubEngine
from tests.service.test_queue import PATH, fetched


@pytest.fixture
def body(photo: bytes, mask: bytes) -> dict[str, Any]:
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    return {"key": "k", "prompt": "a cat", "width": 96, "height": 64, "seed": 7, **pictures}


class GatedEngine(StubEngine):
    """Makes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def _fill(self, request: Any) -> Any:
        assert self.gate.wait(20)
        return super()._fill(request)


@pytest.fixture
def gated() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.gate.set()


@pytest.mark.parametrize(("limit", "status"), [("queue_limit", 429), ("queue_total", 503)])
def test_a_full_queue_refuses_without_the_store_until_it_has_room(
    settings: Settings,
    body: dict[str, Any],
    gated: GatedEngine,
    limit: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = settings.model_copy(update={"slots": 1, limit: 1})
    queued = body | {"instant_response": True}
    with serving(create_app(small, gated)) as client:
        accepted = [client.post(PATH, json=queued).json() for _ in range(2)]
        assert client.post(PATH, json=queued).status_code == status
        with monkeypatch.context() as patch:
            patch.setattr(JobStore, "accept", lambda *_, **__: pytest.fail("it was asked"))
            refused = client.post(PATH, json=queued)
        assert refused.status_code == status
        assert int(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        for answer in accepted:
            assert fetched(client, answer)["status"] == "success"
        assert client.post(PATH, json=body).json()["status"] == "success"


def test_when_all_is_full_the_body_need_not_arrive(
    settings: Settings, body: dict[str, Any], gated: GatedEngine
) -> None:
    small = settings.model_copy(update={"slots": 1, "queue_total": 1})
    queued = body | {"instant_response": True}
    with serving(create_app(small, gated)) as client:
        for _ in range(3):
            last = client.post(PATH, json=queued)
        assert last.status_code == 503
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), 10) as sock:
            sock.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
            assert sock.recv(12) == b"HTTP/1.1 503"
        gated.gate.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore.open(default_url(tmp_path))
    yield store
    store.close()


@pytest.fixture
def decoder(settings: Settings) -> Iterator[PictureDecoder]:
    with contextlib.closing(PictureDecoder.open(limits=settings.picture_limits)) as decoder:
        yield decoder


def _dispatcher(
    store: JobStore, settings: Settings, engine: StubEngine, decoder: PictureDecoder
) -> Dispatcher:
    outputs = open_storage(None, settings.data_dir)
    (settings.data_dir / FOLDER).mkdir(parents=True)
    painter = Painter(engine, PictureReader(None, max_bytes=10**6), decoder, outputs)  # type: ignore[arg-type]
    limits = Limits(per_key=1, total=9)
    return Dispatcher(store, painter, slots=1, limits=limits, trouble=outputs.trouble)


def test_a_refusal_that_comes_after_a_departure_is_not_kept(
    store: JobStore,
    settings: Settings,
    body: dict[str, Any],
    decoder: PictureDecoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a queue that is empty by then would refuse for ever."""
    dispatcher = _dispatcher(store, settings, StubEngine(), decoder)
    how: dict[str, Any] = {"kind": "inpaint", "key": "k", "root": "", "prefix": "p" * 24}

    def accept(*_: object, **__: object) -> Job:
        if leaves:
            dispatcher._fullness.departed()
        raise QueueFull("key", 1)

    monkeypatch.setattr(store, "accept", accept)
    parsed = InpaintBody.parse(body)
    for leaves in (True, False):
        with pytest.raises(ApiError, match="Maximum 1 queued"):
            asyncio.run(dispatcher.accept(parsed, **how))
        if leaves:
            dispatcher.refuse_if_full("k")
    with pytest.raises(ApiError, match="Maximum 1 queued"):
        dispatcher.refuse_if_full("k")
    dispatcher.refuse_if_full("another")
    dispatcher.refuse_if_full()


def test_a_free_slot_is_taken_in_the_transaction_that_accepts(
    store: JobStore,
    settings: Settings,
    body: dict[str, Any],
    gated: GatedEngine,
    decoder: PictureDecoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {"kind": "inpaint", "key": "k", "root": "", "prefix": "p" * 24}
    parsed = InpaintBody.parse(body)
    claims: list[int] = []
    claim = store.claim
    monkeypatch.setattr(
        store, "claim", lambda limit, **how: claims.append(limit) or claim(limit, **how)
    )

    async def run() -> None:
        dispatcher = _dispatcher(store, settings, gated, decoder)
        await dispatcher.start()
        while dispatcher._waiting or dispatcher._reserved:  # it looks once for what was left over
            await asyncio.sleep(0.005)
        first = await dispatcher.accept(parsed, **how)
        second = await dispatcher.accept(parsed, **how)
        assert (first.state, first.attempt) == (State.RUNNING, 1)
        assert second.state is State.QUEUED
        gated.gate.set()
        for job in (first, second):
            await asyncio.wait_for(dispatcher.waiters.ended(job.id), 20)
            done = store.show(job.id)
            assert done is not None
            assert (done.state, done.attempt) == (State.DONE, 1)
            answer = dispatcher.waiters.answer_of(job.id)
            assert answer is not None
            assert answer == done.answer
            dispatcher.waiters.forget(job.id)
            assert dispatcher.waiters.answer_of(job.id) is None
        await dispatcher.drain(5)

    asyncio.run(run())
    assert len(claims) <= 3


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listener("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_pictures_that_cannot_be_read_are_refused_before_and_after_the_queue(
    settings: Settings, body: dict[str, Any]
) -> None:
    broken = body | {"init_image": data_uri(b"no picture")}
    with serving(create_app(settings.model_copy(update={"slots": 1}), StubEngine())) as client:
        alone = client.post(PATH, json=broken)
        ids = [client.post(PATH, json=body | {"instant_response": True}).json() for _ in range(3)]
        behind = client.post(PATH, json=broken)
        for answer in ids:
            fetched(client, answer)
    assert alone.status_code == behind.status_code == 400
    assert alone.json() == behind.json()
