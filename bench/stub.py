"""An engine that sleeps instead of painting, in the child process of a real service.

    python -m bench.stub --seconds 0.1 --lanes 1

serves as ``edgefill serve`` does, settings from the environment: the same application, job store
and engine process; only the networks are missing. The picture that comes back is the one sent, its
hole in one colour.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import uvicorn

from engine import InpaintRequest, InpaintResult, Ticket, Timings
from engine.bundle import Bundle
from engine.cache import CacheStatistics
from engine.sessions.devices import Device
from engine.ticket import OnStep
from service.allocator import keep_buffers
from service.app import create_app
from service.commands.serve import listener
from service.engine_process import EngineProcess
from service.settings import Settings
from service.stream.protocol import options

SECONDS: Final = "STUB_SECONDS"
LANES: Final = "STUB_LANES"
COLOUR: Final = (200, 30, 60)

logger = logging.getLogger(__name__)


class StubEngine:
    """The part of ``engine.Engine`` that the child process uses.

    Args:
        bundle: Requests are checked against it.
        seconds: How long a picture takes.
        lanes: How many are made at the same time.
    """

    def __init__(self, bundle: Bundle, *, seconds: float, lanes: int) -> None:
        self.bundle = bundle
        self.cache_statistics: dict[str, CacheStatistics] = {}
        self.device = Device(name="stub", detail=f"sleeps {seconds:g} s, {lanes} at once")
        self._seconds = seconds
        self._lanes = ThreadPoolExecutor(lanes, thread_name_prefix="stub")

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
        """Take a request; it has the next free lane."""
        ticket = Ticket()
        if on_step is not None:
            ticket.on_step(on_step)
        self._lanes.submit(self._work, ticket, request, time.perf_counter())
        return ticket

    def _work(self, ticket: Ticket, request: InpaintRequest, submitted: float) -> None:
        begun = time.perf_counter()
        if ticket.cancelled():
            ticket.settle(Ticket.cancellation())
            return
        time.sleep(self._seconds)
        ticket.report_step(1, 1, lambda: np.zeros((8, 8, 3), np.uint8))
        ticket.settle(_filled(request, submitted=submitted, begun=begun))


def _filled(request: InpaintRequest, *, submitted: float, begun: float) -> InpaintResult:
    height, width = request.image.shape[:2]
    image = request.image.copy()
    image[cv2.resize(request.mask, (width, height)) >= 128] = COLOUR
    now = time.perf_counter()
    timings = Timings(
        queue=begun - submitted,
        prepare=0.0,
        text_encoder=0.0,
        vae_encoder=0.0,
        unet=now - begun,
        vae_decoder=0.0,
        paste=0.0,
        total=now - submitted,
    )
    return InpaintResult(
        images=np.stack([image] * request.samples),
        seed=request.seed or 0,
        num_inference_steps=request.num_inference_steps or 1,
        steps_run=1,
        guidance_scale=request.guidance_scale or 1.0,
        scheduler=request.scheduler or "ddim",
        region=(0, 0, width, height),
        working_size=(width, height),
        timings=timings,
        latents=np.zeros((request.samples, 4, height // 8, width // 8), np.float32),
    )


def open_engine(path: str, **options: Any) -> StubEngine:
    """The factory for the child process; how long and how many stand in its environment."""
    seconds, lanes = float(os.environ[SECONDS]), int(os.environ[LANES])
    return StubEngine(Bundle.open(Path(path)), seconds=seconds, lanes=lanes)


def main(arguments: list[str] | None = None) -> int:
    """Serve on a free loopback port until stopped; the log says where."""
    parser = argparse.ArgumentParser(prog="python -m bench.stub", description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="how long a picture takes")
    parser.add_argument("--lanes", type=int, default=1, help="pictures at a time (default: 1)")
    chosen = parser.parse_args(arguments)
    os.environ[SECONDS], os.environ[LANES] = str(chosen.seconds), str(chosen.lanes)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    keep_buffers()
    engine = EngineProcess.open(factory=f"{open_engine.__module__}:open_engine")
    with engine, listener("127.0.0.1", 0) as sock:
        settings = Settings.load()
        app = create_app(settings, engine)
        config = uvicorn.Config(app, log_config=None, lifespan="on", **options(settings))
        logger.info("serving: http://127.0.0.1:%d", sock.getsockname()[1])
        uvicorn.Server(config).run(sockets=[sock])
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__: the child imports it by that name.
    from bench import stub

    raise SystemExit(stub.main())
