"""A server that is killed and started again, clients that note what they were promised, and the
account at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx

from service.jobs.store import CRASHED
from tests.service.live import Origin

ROOT = Path(__file__).resolve().parents[2]
PATH = "/api/v6/realtime/inpaint"


class Server:
    """Started again on the same port and data whenever it was killed.

    Args:
        command: Makes the command line for a port.
        settings: ``EDGEFILL_`` variables.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], settings: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = command(self.port)
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/readyz", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                assert self._process.poll() is None, "the server ended by itself"
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


@dataclass
class Receiver:
    """Takes webhooks: the bodies by job and by webhook id, every attempt one."""

    told: dict[int, dict[str, list[bytes]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listen(self, origin: Origin) -> str:
        origin.answers["/hook"] = self._take
        return f"{origin.url}/hook"

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["content-length"])
        body = handler.rfile.read(length)
        if len(body) < length:  # the server was killed while it sent
            return
        with self.lock:
            of_job = self.told.setdefault(json.loads(body)["id"], {})
            of_job.setdefault(handler.headers["webhook-id"], []).append(body)
        handler.send_response(204)
        handler.end_headers()


@dataclass
class Promised:
    """What clients were answered: the seed and the links of each id."""

    jobs: dict[int, tuple[int, list[str]]] = field(default_factory=dict)

    def ask(self, url: str, body: dict[str, Any], over: threading.Event) -> None:
        """Ask again and again until it is over; every second time with a seed of one's own."""
        number = 0
        while not over.is_set():
            number += 1
            changes = {"instant_response": True} | ({"seed": None} if number % 2 else {})
            try:
                answer = httpx.post(url + PATH, json=body | changes, timeout=5)
            except httpx.HTTPError:
                time.sleep(0.02)
                continue
            assert answer.status_code in (200, 429, 503), answer.text
            if answer.status_code == 200:
                found = answer.json()
                assert found["status"] == "processing"
                assert found["id"] not in self.jobs
                self.jobs[found["id"]] = (found["meta"]["seed"], found["future_links"])
            time.sleep(0.03)


@dataclass
class Account:
    """What became of what was promised."""

    kills: int
    accepted: int
    done: int = 0
    failed: int = 0
    twice: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in vars(self).items())


def survive(
    server: Server, bodies: Sequence[dict[str, Any]], *, kills: int, longest: float
) -> Promised:
    """Kill a server at random moments while clients ask, one for each body."""
    promised, over = Promised(), threading.Event()
    server.start()
    threads = [
        threading.Thread(target=promised.ask, args=(server.url, body, over)) for body in bodies
    ]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, longest))
            server.kill()
            server.start()
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    return promised


def settle(
    server: Server,
    promised: Promised,
    receiver: Receiver,
    *,
    kills: int,
    check: Callable[[int, bytes], None],
) -> Account:
    """Wait for every promised job, ask for its answer twice, and wait for its webhook.

    Args:
        server: Runs again.
        promised: What must have come true.
        receiver: Where the webhooks arrive.
        kills: For the account.
        check: Called with the seed and the bytes of every picture.
    """
    account = Account(kills=kills, accepted=len(promised.jobs))
    deadline = time.monotonic() + 60 + len(promised.jobs) * 0.5
    with httpx.Client(base_url=server.url, timeout=10) as client:
        for job_id, (seed, links) in promised.jobs.items():
            found = _ended(client, job_id, deadline)
            if found is None:
                account.lost += 1
                continue
            again = client.get(f"/api/v6/realtime/fetch/{job_id}", headers={"key": "k"}).json()
            account.twice += again != found
            if found["status"] == "error":
                assert found["message"] == CRASHED  # at work in three kills; its client was told
                account.failed += 1
                continue
            assert found["status"] == "success", found
            account.done += 1
            assert found["meta"]["seed"] == seed
            assert found["output"] == links
            check(seed, client.get(links[0]).content)
        for job_id in promised.jobs:
            while job_id not in receiver.told:
                assert time.monotonic() < deadline, f"no webhook of job {job_id}"
                time.sleep(0.05)
    for ids in receiver.told.values():
        (bodies,) = ids.values() if len(ids) == 1 else ([],)
        account.twice += len(set(bodies)) != 1  # delivered again is fine: the same, by one id
    return account


def _ended(client: httpx.Client, job_id: int, deadline: float) -> dict[str, Any] | None:
    while True:
        answer = client.post(f"/api/v6/realtime/fetch/{job_id}", json={"key": "k"})
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = answer.json()
        if found["status"] != "processing":
            return found
        assert time.monotonic() < deadline, f"job {job_id} does not end"
        time.sleep(0.05)
