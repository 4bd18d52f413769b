"""An engine that fills the hole with one colour, at once or after a while."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

import cv2
import numpy as np

from engine import EngineError, InpaintRequest, InpaintResult, Ticket, Timings
from engine.bundle import Bundle
from engine.engine import DEFAULT_BUNDLE
from engine.sessions.devices import Device
from engine.ticket import OnStep
from service.engine_process.program import Program

COLOUR = (200, 30, 60)


class StubEngine:
    """The face of ``engine.Engine``.

    Args:
        delay: Seconds that a request takes, in steps of a hundredth.
        error: Raised by every ticket instead of a result.
    """

    device = Device(name="stub", detail="no network at all")
    safety_checker: str | None = None

    def __init__(self, *, delay: float = 0.0, error: Exception | None = None) -> None:
        self.delay = delay
        self.error = error
        self.requests: list[InpaintRequest] = []
        self.cancelled = threading.Event()
        self.closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        safety_checker: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
        program: Program | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> StubEngine:
        if path is not None:
            Bundle.open(path)
        if device not in ("auto", "cpu"):
            raise EngineError(f"device {device!r} is not supported; allowed: auto, cpu")
        if meanwhile is not None:
            meanwhile()
        return cls()

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(DEFAULT_BUNDLE)

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
        self.requests.append(request)
        ticket = Ticket()
        if on_step is not None:
            ticket.on_step(on_step)
        threading.Thread(target=self._work, args=(ticket, request), daemon=True).start()
        return ticket

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> StubEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self, ticket: Ticket, request: InpaintRequest) -> None:
        begin = time.monotonic()
        ticket.report_step(1, 2, lambda: np.zeros((8, 8, 3), np.uint8))
        while time.monotonic() - begin < self.delay:
            if ticket.cancelled():
                self.cancelled.set()
                ticket.settle(Ticket.cancellation())
                return
            time.sleep(0.01)
        ticket.settle(self.error or self._fill(request))

    def _fill(self, request: InpaintRequest) -> InpaintResult:
        return fill(request)


def fill(request: InpaintRequest) -> InpaintResult:
    """The picture at the size that was asked for, its hole in one colour."""
    width = request.width or request.image.shape[1]
    height = request.height or request.image.shape[0]
    image = cv2.resize(request.image, (width, height))
    hole = cv2.resize(request.mask, (width, height)) >= 128
    image[hole] = COLOUR
    return InpaintResult(
        images=np.stack([image] * request.samples),
        seed=request.seed if request.seed is not None else 0,
        num_inference_steps=request.num_inference_steps or 4,
        steps_run=request.num_inference_steps or 4,
        guidance_scale=request.guidance_scale or 1.0,
        scheduler=request.scheduler or "ddim",
        region=(0, 0, width, height),
        working_size=(width, height),
        timings=Timings(
            queue=1.0,
            prepare=0.1,
            text_encoder=0.1,
            vae_encoder=0.1,
            unet=0.1,
            vae_decoder=0.1,
            paste=0.0,
            total=1.5,
        ),
        latents=np.zeros((request.samples, 4, 8, 8), np.float32),
    )
