"""SIGKILL of the engine's process behind a serving one: only what is inside is tried again.

``EDGEFILL_TEST_KILLS_CHILD`` says how often, a hundred in a long run; ``pytest -s`` shows the
account.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import Bundle, InpaintRequest
from service.app import create_app
from service.engine_process import EngineProcess, ProcessTicket
from service.errors import FAILED
from service.settings import Settings
from tests.service.conftest import data_uri
from tests.service.engine_process.helpers import POISON, kill, until
from tests.service.live import serving

KILLS = int(os.environ.get("EDGEFILL_TEST_KILLS_CHILD", "3"))
BUSY, CASUAL = 4, 3
"""Clients that ask again at once, so that they are inside when it dies, and those that ask now and
then, so that they come while it is being replaced and wait outside."""

FETCH = "/api/v6/realtime/fetch"
INPAINT = "/api/v6/realtime/inpaint"
INSIDE = re.compile(r"was killed by SIGKILL with (\d+) request\(s\) inside")


class Noted:
    """An engine whose tickets are kept."""

    def __init__(self, process: EngineProcess) -> None:
        self.process = process
        self.tickets: list[ProcessTicket] = []

    @property
    def bundle(self) -> Bundle:
        return self.process.bundle

    @property
    def ready(self) -> bool:
        return self.process.ready

    def submit(self, request: InpaintRequest) -> ProcessTicket:
        self.tickets.append(self.process.submit(request))
        return self.tickets[-1]

    def close(self) -> None:
        pass


class Clients:
    """Threads that ask until it is over; what one of them finds wrong ends the test."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.slowest_ready = 0.0
        self._wrong: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, ask: Callable[[], None], pause: float) -> None:
        def run() -> None:
            try:
                while not self.over.is_set():
                    ask()
                    time.sleep(pause)
            except BaseException as exc:
                self._wrong.append(exc)
                self.over.set()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(60)
        for exc in self._wrong:
            raise exc


def test_only_what_is_inside_is_tried_again(
    bundle: Path,
    settings: Settings,
    photo: bytes,
    mask: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    body: dict[str, Any] = {
        "key": "k",
        "prompt": "slow",
        "width": 96,
        "height": 64,
        "num_inference_steps": 8,
        "strength": 1,
        "init_image": data_uri(photo),
        "mask_image": data_uri(mask),
    }
    clients = Clients()
    with (
        EngineProcess.open(bundle, device="cpu", threads=1, factory=POISON) as process,
        serving(
            create_app(
                settings.model_copy(update={"slots": BUSY + CASUAL}), noted := Noted(process)
            )
        ) as client,
    ):
        first = client.post(INPAINT, json=body).json()
        url = str(client.base_url)

        def picture() -> None:
            answer = httpx.post(url + INPAINT, json=body, timeout=60)
            if answer.status_code == 500:  # in the third death a request is given up, by design
                assert answer.json()["message"] == FAILED
                clients.seen["given up"] += 1
                return
            assert answer.status_code == 200, answer.text
            told = answer.json()
            while told["status"] == "processing":  # the budget ended: it is made nevertheless
                time.sleep(0.1)
                told = httpx.post(f"{url}{FETCH}/{told['id']}", json={"key": "k"}).json()
            if told["status"] == "error":
                assert told["message"] == FAILED
                clients.seen["given up"] += 1
                return
            clients.seen[told["status"]] += 1

        def fetch() -> None:
            assert httpx.get(f"{url}{FETCH}/{first['id']}", headers={"key": "k"}).json() == first
            clients.seen["fetch"] += 1

        def ready() -> None:
            begin = time.monotonic()
            clients.seen[f"readyz {httpx.get(f'{url}/readyz').status_code}"] += 1
            clients.slowest_ready = max(clients.slowest_ready, time.monotonic() - begin)

        for pause in [0.0] * BUSY + [0.2] * CASUAL:
            clients.start(picture, pause)
        clients.start(fetch, 0.05)
        clients.start(ready, 0.02)
        rng, outside = random.Random(3), 0
        for i in range(KILLS):
            # Every other one comes while those of the last are tried again, one at a time, and
            # others wait outside. Then they must get through: a third death would be a verdict
            # and not a crash.
            if i % 2 == 0:
                until(lambda: clients.over.is_set() or _safe(noted.tickets))
            else:
                end = time.monotonic() + 2
                until(lambda end=end: time.monotonic() > end or _outside(noted.tickets))  # type: ignore[misc]
            outside += _outside(noted.tickets)
            time.sleep(rng.random() * 0.05)
            if clients.over.is_set():
                break
            kill(process)
            until(lambda done=i + 1: process.restarts >= done and process.ready)  # type: ignore[misc]
        clients.end()
        deaths = [int(found[1]) for found in INSIDE.finditer(caplog.text)]
        attempts = Counter(ticket.attempts for ticket in noted.tickets)
    again = sum((count - 1) * tickets for count, tickets in attempts.items())
    print(
        f"\nengine process: kills: {KILLS}, pictures: {sum(attempts.values())}, "
        f"inside: {sum(deaths)}, outside: {outside}, tried again: {again}, "
        f"attempts: {dict(sorted(attempts.items()))}, "
        f"answers: {dict(clients.seen)}, slowest /readyz: {clients.slowest_ready * 1e3:.0f} ms"
    )
    assert process.restarts == len(deaths) == KILLS
    given_up = clients.seen["given up"]
    assert again + given_up == sum(deaths) > 0
    assert given_up <= attempts[3]
    assert set(clients.seen) <= {"success", "given up", "fetch", "readyz 200", "readyz 503"}
    assert clients.seen["success"] + given_up + 1 == len(noted.tickets)
    assert clients.seen["fetch"] > KILLS


def _safe(tickets: list[ProcessTicket]) -> bool:
    return bool(tickets) and all(ticket.done() or ticket.attempts < 2 for ticket in tickets)


def _outside(tickets: list[ProcessTicket]) -> int:
    """How many wait for their first attempt."""
    return sum(not ticket.done() and ticket.attempts == 0 for ticket in tickets)
