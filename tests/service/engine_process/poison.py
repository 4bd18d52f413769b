"""Engines for the child process that do what a prompt says: die, hang, fail, or take their time."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from engine import Engine, InpaintRequest, TensorMismatch, Ticket
from engine.cache import CacheStatistics
from engine.ticket import MakePreview, OnStep


class PoisonedEngine:
    """A real engine whose loop obeys the prompt after every step.

    ``kill`` and ``exit`` end the process, ``hang FILE`` sleeps for ever the first time (it makes
    the file to remember), ``refuse`` fails when it is handed in, ``slow`` takes a fiftieth of a
    second a step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.bundle = engine.bundle
        self.device = engine.device

    @property
    def cache_statistics(self) -> dict[str, CacheStatistics]:
        return self._engine.cache_statistics

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
        if request.prompt == "refuse":
            raise TensorMismatch("unet: sample is float16, declared is float32")
        ticket = self._engine.submit(request, on_step=partial(_obey, request.prompt))
        if on_step is not None:
            ticket.on_step(on_step)
        return ticket


def _obey(prompt: str, step: int, total: int, preview: MakePreview) -> None:
    match prompt.split():
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["exit"]:
            os._exit(3)
        case ["hang", name] if not Path(name).exists():
            Path(name).touch()
            time.sleep(1000)
        case ["slow"]:
            time.sleep(0.02)


def open_engine(path: str, **options: Any) -> PoisonedEngine:
    return PoisonedEngine(Engine.open(path, **options))


def die(path: str, **options: Any) -> PoisonedEngine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def stumble(path: str, **options: Any) -> PoisonedEngine:
    raise ZeroDivisionError("a defect")


def doze(path: str, **options: Any) -> PoisonedEngine:
    time.sleep(1000)
    raise AssertionError
