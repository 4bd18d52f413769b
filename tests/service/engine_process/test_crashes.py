"""Real children: killed, stopped, poisoned and abandoned."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engine import (
    DeviceLost,
    Engine,
    RequestCancelled,
)
from engine.ticket import MakePreview
from service.engine_process import EngineProcess, ProcessTicket
from tests.service.engine_process.helpers import (
    POISON,
    ROOT,
    a_request,
    alike,
    gone,
    kill,
    same,
    until,
)


def test_a_child_killed_while_idle_is_replaced(process: EngineProcess, plain: Engine) -> None:
    before, pid = process.restarts, process.pid
    kill(process)
    until(lambda: not process.ready)
    assert process.state == "restarting"
    ticket = process.submit(a_request())  # not handed to any child yet
    same(ticket.result(30), plain.inpaint(a_request()))
    assert ticket.attempts == 1
    assert process.restarts == before + 1
    assert process.pid != pid


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_inside_a_killed_child_is_tried_again(
    process: EngineProcess, plain: Engine, count: int
) -> None:
    requests = [a_request(seed, prompt="slow", num_inference_steps=12) for seed in range(count)]
    stepped = threading.Event()
    tickets = [process.submit(request) for request in requests]
    tickets[-1].on_step(lambda step, total, preview: stepped.set())
    assert stepped.wait(20)
    kill(process)
    for ticket, request in zip(tickets, requests, strict=True):
        alike(ticket.result(30), plain.inpaint(request))
        assert ticket.attempts == 2


def test_a_seed_that_nobody_chose_is_the_same_in_every_attempt(process: EngineProcess) -> None:
    first_steps: list[npt.NDArray[np.uint8]] = []

    def look(step: int, total: int, preview: MakePreview) -> None:
        if step == 1:
            first_steps.append(preview())
            kill(process)

    ticket = process.submit(a_request(None, prompt="slow"), on_step=look)
    with pytest.raises(DeviceLost):
        ticket.result(30)
    assert len(first_steps) == 3
    for other in first_steps[1:]:
        np.testing.assert_array_equal(other, first_steps[0])


@pytest.mark.parametrize("poison", ["kill", "exit"])
def test_a_poisonous_request_fails_alone(
    process: EngineProcess, plain: Engine, poison: str
) -> None:
    before = process.restarts
    first = process.submit(a_request(1, prompt="slow"))
    bad = process.submit(a_request(2, prompt=poison))
    last = process.submit(a_request(3, prompt="slow"))
    how = "was killed by SIGKILL" if poison == "kill" else "exited with status 3"
    with pytest.raises(DeviceLost, match=f"given up after 3 attempts: engine process .* {how}"):
        bad.result(30)
    assert bad.attempts == 3
    assert process.restarts == before + 3
    for ticket, seed in ((first, 1), (last, 3)):
        alike(ticket.result(30), plain.inpaint(a_request(seed, prompt="slow")))
        assert ticket.attempts <= 2


def test_a_hang_is_noticed_and_cured(bundle: Path, plain: Engine, tmp_path: Path) -> None:
    prompt = f"hang {tmp_path / 'once'}"
    with EngineProcess.open(
        bundle, device="cpu", threads=1, hang_seconds=0.7, factory=POISON
    ) as process:
        ticket = process.submit(a_request(prompt=prompt))
        same(ticket.result(30), plain.inpaint(a_request(prompt=prompt)))
        assert ticket.attempts == 2
        kill(process, signal.SIGSTOP)  # and once more, all of it
        ticket = process.submit(a_request(2))
        same(ticket.result(30), plain.inpaint(a_request(2)))
        assert ticket.attempts == 2
        assert process.restarts == 2


def test_random_kills_under_load(process: EngineProcess, plain: Engine) -> None:
    process.inpaint(a_request())
    before, descriptors = process.restarts, len(os.listdir("/proc/self/fd"))
    wanted = [plain.inpaint(a_request(seed)) for seed in range(4)]
    current: dict[int, ProcessTicket] = {}
    wrong: list[object] = []
    over = threading.Event()

    def client(seed: int) -> None:
        while not over.is_set():
            current[seed] = process.submit(a_request(seed))
            try:
                alike(current[seed].result(60), wanted[seed])
            except BaseException as exc:
                wrong.append(exc)
                return

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    rng = random.Random(7)
    for i in range(20):
        until(lambda: process.ready and len(current) == 4)
        # Nobody's third attempt is put at risk: that would be a verdict, not a crash.
        until(lambda: all(t.done() or t.attempts < 2 for t in list(current.values())))
        time.sleep(rng.random() * 0.05)
        kill(process)
        until(lambda done=i + 1: process.restarts >= before + done)  # type: ignore[misc]
    over.set()
    for thread in clients:
        thread.join(60)
    assert wrong == []
    assert process.restarts == before + 20
    until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


def test_a_cancelled_request_is_not_tried_again(bundle: Path, tmp_path: Path) -> None:
    with EngineProcess.open(
        bundle, device="cpu", threads=1, hang_seconds=0.7, factory=POISON
    ) as process:
        once = tmp_path / "once"
        ticket = process.submit(a_request(prompt=f"hang {once}"))
        until(once.exists)
        ticket.cancel()
        with pytest.raises(RequestCancelled):
            ticket.result(10)
        assert ticket.attempts == 1


def test_a_bundle_that_breaks_later_ends_the_engine(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    with EngineProcess.open(copy, device="cpu", threads=1) as process:
        (copy / "unet.onnx").unlink()
        kill(process)
        until(lambda: not process.ready)
        ticket = process.submit(a_request())
        with pytest.raises(DeviceLost, match=r"given up: .*unet\.onnx"):
            ticket.result(30)
        assert process.state == "stopped"
        with pytest.raises(DeviceLost, match=r"unet\.onnx"):
            process.submit(a_request())


@pytest.mark.parametrize("prompt", ["", "hang once"])
def test_nothing_is_left_when_the_parent_is_killed(
    bundle: Path, tmp_path: Path, prompt: str
) -> None:
    """Whether the child is idle or stuck in a kernel."""
    code = (
        "import sys, time\n"
        "from service.engine_process import EngineProcess\n"
        "from tests.service.engine_process.helpers import POISON, a_request\n"
        "process = EngineProcess.open(sys.argv[1], device='cpu', factory=POISON)\n"
        "process.submit(a_request(prompt=sys.argv[2]))\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    once = tmp_path / "once"
    shm = sorted(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bundle), prompt.replace("once", str(once))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if prompt:
            until(once.exists)
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid), 5)
    assert sorted(os.listdir("/dev/shm")) == shm
