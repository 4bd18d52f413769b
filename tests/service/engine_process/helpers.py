"""Requests, and what the tests of the engine process wait for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import InpaintRequest, InpaintResult
from service.engine_process import EngineProcess

ROOT = Path(__file__).parent.parent.parent.parent
POISON = "tests.service.engine_process.poison:open_engine"


def a_request(seed: int | None = 1, side: int = 64, **changes: Any) -> InpaintRequest:
    image = np.random.RandomState(seed).randint(0, 256, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    values: dict[str, Any] = {"image": image, "mask": mask, "prompt": "a cat", "seed": seed}
    return InpaintRequest(**values | changes)


def same(made: InpaintResult, wanted: InpaintResult) -> None:
    np.testing.assert_array_equal(made.images, wanted.images)
    if wanted.latents is None:
        assert made.latents is None
    else:
        np.testing.assert_array_equal(made.latents, wanted.latents)
    for name in (
        "seed",
        "num_inference_steps",
        "steps_run",
        "guidance_scale",
        "scheduler",
        "region",
        "working_size",
    ):
        assert getattr(made, name) == getattr(wanted, name), name


def alike(made: InpaintResult, wanted: InpaintResult) -> None:
    """Equal to within float rounding: one of them may have been made in company."""
    assert np.abs(made.images.astype(int) - wanted.images).max() <= 1


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)


def kill(process: EngineProcess, number: int = signal.SIGKILL) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def gone(pid: int) -> bool:
    """Whether a process that is not our child has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except FileNotFoundError:
        return True
