"""SIGKILL at random moments under load: what was answered ``processing`` is never lost.

``EDGEFILL_TEST_KILLS`` says how often the server is killed; a long run has a hundred.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.jobs.store import CRASHED
from tests.service.conftest import data_uri

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("EDGEFILL_TEST_KILLS", "4"))
CLIENTS = 3


class Server:
    """The stub server, started again on the same port and data whenever it was killed."""

    def __init__(self, data_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.service.stub_server"]
        arguments = [str(self._data_dir), str(self.port), "0.05"]
        self._process = subprocess.Popen([*command, *arguments], cwd=ROOT)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/readyz", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.02)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


def test_nothing_accepted_is_lost(tmp_path: Path, photo: bytes, mask: bytes) -> None:
    server = Server(tmp_path)
    accepted: dict[int, tuple[int, list[str]]] = {}
    stop = threading.Event()
    pictures = {"init_image": data_uri(photo), "mask_image": data_uri(mask)}
    asks: dict[str, Any] = {"key": "k", "prompt": "x", "width": 96, "height": 64, **pictures}

    def client(number: int) -> None:
        seed = number * 1_000_000
        while not stop.is_set():
            seed += 1
            body = asks | {"seed": seed, "instant_response": True}
            try:
                answer = httpx.post(f"{server.url}/api/v6/realtime/inpaint", json=body, timeout=5)
            except httpx.HTTPError:
                time.sleep(0.02)
                continue
            if answer.status_code == 200:
                found = answer.json()
                assert found["status"] == "processing"
                assert found["id"] not in accepted
                accepted[found["id"]] = (seed, found["future_links"])
            time.sleep(0.03)

    server.start()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.05, 0.8))
        server.kill()
        server.start()
    stop.set()
    for thread in threads:
        thread.join(30)
    try:
        assert len(accepted) >= KILLS
        deadline = time.monotonic() + 60 + len(accepted) * 0.2
        for job_id, (seed, links) in accepted.items():
            while True:
                url = f"{server.url}/api/v6/realtime/fetch/{job_id}"
                answer = httpx.post(url, json={"key": "k"}, timeout=10)
                assert answer.status_code == 200, f"job {job_id} is lost"
                found = answer.json()
                if found["status"] != "processing":
                    break
                assert time.monotonic() < deadline, f"job {job_id} does not end"
                time.sleep(0.05)
            if found["status"] == "error" and found["message"] == CRASHED:
                continue  # at work in three kills: ended, and its client was told
            assert found["status"] == "success", found
            assert found["meta"]["seed"] == seed
            assert found["output"] == links
            assert httpx.get(links[0], timeout=10).status_code == 200
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
