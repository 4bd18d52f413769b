"""An engine whose steps a test lets through, and a client that says and hears."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import httpx
import numpy as np
from websockets.sync.client import ClientConnection, connect

from engine import InpaintRequest, Ticket
from tests.service.stub_engine import StubEngine, fill

PATH = "/api/v6/realtime/stream"
ENDS = ("result", "cancelled", "error")


class StepEngine(StubEngine):
    """Makes a step whenever the test lets one through; a cancelled request stops at its next.

    Attributes:
        gate: Each step takes one permit.
        made: Steps that were made, by prompt.
        most: Requests that were worked on at the same time, at most.
    """

    def __init__(self, *, steps: int = 0) -> None:
        super().__init__()
        self.gate = threading.Semaphore(steps)
        self.made: Counter[str] = Counter()
        self.most = 0
        self._now = 0
        self._counting = threading.Lock()

    def free(self) -> None:
        """Let all steps through from now on."""
        self.gate.release(1_000_000)

    @contextlib.contextmanager
    def freed(self) -> Iterator[None]:
        """Let all steps through at the end, so that a server can stop."""
        try:
            yield
        finally:
            self.free()

    def reset(self) -> None:
        """Hold back every step, and forget what was."""
        self.gate = threading.Semaphore(0)
        self.made.clear()
        self.requests.clear()
        self.cancelled.clear()
        self.most = 0

    def _work(self, ticket: Ticket, request: InpaintRequest) -> None:
        steps = request.num_inference_steps or 4
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
        for step in range(1, steps + 1):
            if ticket.cancelled():
                break
            self.gate.acquire()
            self.made[request.prompt] += 1
            ticket.report_step(step, steps, lambda: np.full((8, 8, 3), 99, np.uint8))
        with self._counting:
            self._now -= 1
        if ticket.cancelled():
            ticket.settle(Ticket.cancellation())
            self.cancelled.set()
        else:
            ticket.settle(self.error or fill(request))


class Talk:
    """A client of a stream."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, values: dict[str, Any], *pictures: bytes) -> Self:
        self.socket.send(json.dumps(values))
        for picture in pictures:
            self.socket.send(picture)
        return self

    def hear(self, timeout: float = 10) -> dict[str, Any]:
        """The next message, its binary frames under ``pictures``."""
        text = self.socket.recv(timeout)
        assert isinstance(text, str), "a picture that no message had announced"
        heard: dict[str, Any] = json.loads(text)
        heard["pictures"] = [self.socket.recv(timeout) for _ in range(heard.get("binary", 0))]
        assert all(isinstance(picture, bytes) for picture in heard["pictures"])
        return heard

    def end(self, edit: int) -> dict[str, Any]:
        """The end of an edit, which must be the next one."""
        while (heard := self.hear())["type"] not in ENDS:
            pass
        assert heard["edit"] == edit
        return heard

    def ends(self, count: int) -> list[tuple[int, str]]:
        return [(edit, self.end(edit)["type"]) for edit in range(1, count + 1)]


@contextlib.contextmanager
def talking(client: httpx.Client, path: str = PATH, **options: Any) -> Iterator[Talk]:
    """A stream to the server of an HTTP client."""
    url = f"ws://{client.base_url.host}:{client.base_url.port}{path}"
    with connect(url, proxy=None, compression=None, **options) as socket:
        yield Talk(socket)
