"""The engine in a child process: the same face, the same pictures, the same errors."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import (
    BundleError,
    DeviceLost,
    Engine,
    EngineError,
    InputError,
    RequestCancelled,
    RuntimeUnavailable,
    SessionError,
    TensorMismatch,
)
from service.engine_process import EngineProcess
from tests.service.engine_process.helpers import POISON, ROOT, a_request, gone, kill, same, until


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"samples": 2, "guidance_scale": 1.0, "strength": 0.5},
        {"side": 100, "width": 128, "height": 72, "scheduler": "euler_a"},
        {"side": 200, "region": "mask", "negative_prompt": "bad", "prompt": "\N{CAT FACE}" * 5000},
        {"reference": True, "num_inference_steps": 3},
        {"mask": np.zeros((64, 64), np.uint8)},
        {"strength": 0.0},
    ],
)
def test_the_same_pictures_as_the_engine(
    process: EngineProcess, plain: Engine, changes: dict[str, Any]
) -> None:
    request = a_request(**changes)
    begin = time.perf_counter()
    made = process.inpaint(request)
    assert 0 < made.timings.total <= time.perf_counter() - begin
    same(made, plain.inpaint(request))
    made.images[:] = 0  # the caller's own, as the engine's are


def test_the_default_bundle() -> None:
    states: list[str] = []
    request = a_request(side=128)
    with EngineProcess.open(device="cpu", on_state=states.append) as process:
        assert process.ready
        assert process.device.name == "cpu"
        made = process.inpaint(request)
    with Engine.open(device="cpu") as engine:
        same(made, engine.inpaint(request))
    assert states == ["ready", "stopped"]


def test_cancelling(process: EngineProcess) -> None:
    stepped = threading.Event()
    running = process.submit(
        a_request(prompt="slow", num_inference_steps=200),
        on_step=lambda step, total, preview: stepped.set(),
    )
    assert stepped.wait(20)
    begin = time.monotonic()
    assert running.cancel()
    with pytest.raises(RequestCancelled, match="the request was cancelled"):
        running.result(10)
    assert time.monotonic() - begin < 5
    assert not running.cancel()
    kill(process)
    until(lambda: not process.ready)
    waiting, other = process.submit(a_request()), process.submit(a_request(2))
    waiting.cancel()
    with pytest.raises(RequestCancelled):
        waiting.result(0.5)  # before there is a child
    other.result(30)
    with pytest.raises(TimeoutError):
        process.inpaint(a_request(prompt="slow", num_inference_steps=200), timeout=0.1)


def test_steps_cross_when_somebody_asks(process: EngineProcess, plain: Engine) -> None:
    def collect(into: list[Any]) -> Callable[..., None]:
        return lambda step, total, preview: into.append((step, total, preview()))

    made: list[Any] = []
    wanted: list[Any] = []
    process.submit(a_request(), on_step=collect(made)).result(20)
    plain.submit(a_request(), on_step=collect(wanted)).result(20)
    assert [step[:2] for step in made] == [step[:2] for step in wanted]
    for ours, theirs in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(ours[2], theirs[2])


def test_errors_cross_as_themselves(process: EngineProcess) -> None:
    with pytest.raises(InputError, match="scheduler") as caught:
        process.submit(a_request(scheduler="abacus"))
    assert caught.value.field == "scheduler"
    with pytest.raises(TensorMismatch, match="^unet: sample is float16, declared is float32$"):
        process.inpaint(a_request(prompt="refuse"))
    assert process.ready


def test_interrupts_are_the_parents_affair(process: EngineProcess) -> None:
    pid = process.pid
    for number in (signal.SIGINT, signal.SIGTERM):
        kill(process, number)
    process.inpaint(a_request())
    assert process.pid == pid


def test_closing_under_load(bundle: Path) -> None:
    process = EngineProcess.open(bundle, device="cpu", threads=1, factory=POISON)
    pid = process.pid
    assert pid is not None
    tickets = [process.submit(a_request(seed, prompt="slow")) for seed in range(40)]
    closed_inside: list[str] = []

    def close_inside(_: object) -> None:
        process.close()  # from a callback: does not wait for itself
        closed_inside.append(process.state)

    tickets[0].add_done_callback(close_inside)
    tickets[0].result(20)
    process.close()
    assert gone(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # buried, not a zombie
    for ticket in tickets[-10:]:
        with pytest.raises(RequestCancelled, match="closed before the picture was done"):
            ticket.result(0)
    assert all(ticket.done() for ticket in tickets)
    assert len(closed_inside) == 1
    assert (process.state, process.pid, process.ready) == ("stopped", None, False)
    with pytest.raises(EngineError, match="the engine is closed"):
        process.submit(a_request())
    process.close()


def test_what_cannot_open_says_why(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        EngineProcess.open(tmp_path / "nothing")
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        EngineProcess.open(bundle, device="abacus")
    with pytest.raises(SessionError, match=r"ZeroDivisionError\('a defect'\)"):
        EngineProcess.open(bundle, factory="tests.service.engine_process.poison:stumble")
    with pytest.raises(DeviceLost, match="was killed by SIGKILL"):
        EngineProcess.open(bundle, factory="tests.service.engine_process.poison:die")
    doze = "tests.service.engine_process.poison:doze"
    with pytest.raises(DeviceLost, match=r"was not ready after 0.5 s"):
        EngineProcess.open(bundle, factory=doze, start_seconds=0.5)


def test_logs_cross_and_settings_do_not(
    bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEYS", "secret")
    with (
        caplog.at_level(logging.INFO),
        EngineProcess.open(bundle, device="cpu", threads=1) as process,
    ):
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PATH" in environment
    assert b"EDGEFILL" not in environment
    assert any(record.name == "engine.engine" for record in caplog.records)


def test_the_child_loads_no_web_framework() -> None:
    code = (
        "import service.engine_process.child, sys\n"
        "unwanted = {'starlette', 'uvicorn', 'httpx', 'pydantic', 'multiprocessing'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
