"""The end of a server with streams, and of an engine's process under one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from engine import Engine
from service.app import create_app
from service.engine_process import EngineProcess
from service.settings import Settings
from tests.engine.test_editing import hammer
from tests.engine.tiny import make_bundle
from tests.service.engine_process.helpers import POISON, a_request, kill
from tests.service.live import serving
from tests.service.stream.steps import talking

SERVER = """
import sys, service.engine_process
from tests.service.stream.steps import StepEngine
class Slow(StepEngine):
    @classmethod
    def open(cls, *_, **__):
        made = cls()
        made.free()
        return made
    def _work(self, ticket, request):
        import time
        for step in range(1, 1001):
            if ticket.cancelled():
                break
            time.sleep(0.02)
            ticket.report_step(step, 1000, lambda: __import__("numpy").zeros((8, 8, 3), "uint8"))
        ticket.settle(ticket.cancellation())
service.engine_process.EngineProcess = Slow
from service.cli import main
sys.exit(main(["serve", "--port", "0"]))
"""
ROOT = Path(__file__).parents[3]


def test_every_edit_has_its_end_when_the_server_stops(body: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            if "serving: http://" in line:
                port = int(line.split("127.0.0.1:")[1].split()[0])
            if "startup complete" in line:
                break
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        with client, talking(client) as talk:
            assert talk.say(body).hear()["type"] == "preview"
            process.send_signal(signal.SIGTERM)
            assert talk.end(1)["type"] == "cancelled"
            with pytest.raises(ConnectionClosed) as caught:
                talk.hear()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
        rest = process.stderr.read()
        assert process.wait(20) == 0
        assert "Traceback" not in rest
        assert "ERROR" not in rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def test_an_engine_in_a_process_of_its_own(
    bundle: Path, settings: Settings, body: dict[str, Any]
) -> None:
    with EngineProcess.open(bundle, device="cpu", threads=1, factory=POISON) as process:
        request = a_request()
        hammer(process.edit, request.image, request.mask)
        with serving(create_app(settings, process), settings) as client, talking(client) as talk:
            slow = body | {"prompt": "slow", "num_inference_steps": 50}
            assert talk.say(slow).hear()["step"] == 1
            talk.say({"prompt": "a cat", "num_inference_steps": 4})
            assert talk.end(1)["type"] == "cancelled"
            made = talk.end(2)["pictures"]
            talk.say({"prompt": "slow", "num_inference_steps": 50}).hear()
            kill(process)
            talk.say({"prompt": "a cat", "num_inference_steps": 4})
            assert talk.end(3)["type"] == "cancelled"
            assert talk.end(4)["pictures"] == made
            assert talk.say({"prompt": "refuse"}).end(5)["status"] == 500
            assert json.loads(json.dumps(talk.say({"prompt": "a cat"}).end(6)["meta"]))


def test_an_engine_in_this_process(bundle: Path, settings: Settings, body: dict[str, Any]) -> None:
    with (
        Engine.open(bundle, threads=1) as engine,
        serving(create_app(settings, engine), settings) as client,
        talking(client) as talk,
    ):
        asked = body | {"num_inference_steps": 3, "width": 200, "height": 120, "base64": True}
        assert talk.say(asked).hear()["steps"] == 3
        made = talk.end(1)["output"]
        assert made == client.post("/api/v6/realtime/inpaint", json=asked).json()["output"]
