"""The engine: requests join at any denoising step, and every UNet call carries all of them.

One thread runs the loop. State is in ``engine.job``, the choice of who runs in ``engine.batcher``,
the execution in ``engine.models``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.batcher import pick
from engine.bundle import Bundle
from engine.errors import (
    BundleError,
    EngineError,
    InputError,
    RequestCancelled,
    SessionError,
)
from engine.job import Clock, Job, finish, prepare
from engine.models import Models
from engine.prompt import PromptEncoder
from engine.request import InpaintRequest, InpaintResult
from engine.schedulers import make_schedule
from engine.sessions.devices import Device, open_session, select
from engine.ticket import Ticket

logger = logging.getLogger(__name__)

DEFAULT_BUNDLE: Final = Path(__file__).parent / "default_bundle"
"""The small model that ships with Edgefill."""

MAX_BATCH_PIXELS: Final = 2 * 512 * 512
"""What one UNet call carries unless told otherwise: one guided picture of 512x512, or eight of
256x256. The largest attention grows with the square of a row's pixels, and on a CPU a larger
batch gains no throughput."""

MAX_RUNNING: Final = 32
"""How many requests take part in the loop; further ones wait their turn."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """A prepared job and the ticket it is for."""

    ticket: Ticket
    job: Job

    @property
    def shape_key(self) -> tuple[int, ...]:
        return self.job.shape_key

    @property
    def pixels(self) -> int:
        return self.job.pixels


class Engine:
    """Runs a bundle on a device. Safe to use from any thread.

    Open one with ``Engine.open`` and close it when done; it is a context manager.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        background: bool = True,
    ) -> None:
        self.bundle: Final = bundle
        self.device: Final = device
        self._max_batch_pixels = max_batch_pixels
        _check_scheduler(bundle)
        opener = partial(open_session, device, bundle.path, threads=threads)
        self._models = Models.open(bundle, opener)
        tokenizer = bundle.path / bundle.tokenizer.file
        self._prompts = PromptEncoder(tokenizer, self._models.text_encoder)
        self._submitted: deque[tuple[Ticket, Clock]] = deque()
        self._running: deque[_Running] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._loop, name="edgefill-engine", daemon=True)
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

        Raises:
            BundleError: If the bundle is damaged or not understood.
            SessionError: If the device does not work or cannot open the networks.
        """
        chosen = select(device)
        bundle = Bundle.open(DEFAULT_BUNDLE if path is None else path)
        engine = cls(
            bundle,
            chosen,
            threads=threads,
            max_batch_pixels=max_batch_pixels,
            background=background,
        )
        logger.info("opened %s: %s", bundle.path, chosen.detail)
        return engine

    def submit(self, request: InpaintRequest) -> Ticket:
        """Hand in a request; it joins the running ones at their next step.

        Raises:
            EngineError: If the engine is closed.
        """
        ticket = Ticket(request)
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed")
            self._submitted.append((ticket, Clock(submitted=time.perf_counter())))
            self._wake.notify()
        return ticket

    def inpaint(self, request: InpaintRequest, timeout: float | None = None) -> InpaintResult:
        """Hand in a request and wait for its result; see ``Ticket.result`` for what it raises."""
        ticket = self.submit(request)
        while self._thread is None and not ticket.done():
            self.step()
        return ticket.result(timeout)

    def step(self) -> bool:
        """Do one round: admit one request, make one UNet call, finish what is done.

        Returns:
            Whether there is more to do.
        """
        self._admit()
        batch = pick(self._running, max_pixels=self._max_batch_pixels)
        if batch:
            for running in batch:
                self._running.remove(running)
            self._run(batch)
        with self._wake:
            return bool(self._running or self._submitted)

    def close(self) -> None:
        """Stop after the round under way; what is not done by then ends as cancelled."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        closed = RequestCancelled("the engine was closed before the picture was done")
        for ticket in [running.ticket for running in self._running]:
            ticket.settle(closed)
        for ticket, _ in self._submitted:
            ticket.settle(closed)
        self._running.clear()
        self._submitted.clear()
        self._models.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._submitted or self._running)
                if self._closing:
                    return
            self.step()

    def _admit(self) -> None:
        """Prepare the next submitted request and let it join.

        One a round, so that those already running are held up by no more than that.
        """
        with self._wake:
            if not self._submitted or len(self._running) >= MAX_RUNNING:
                return
            ticket, clock = self._submitted.popleft()
        if ticket.cancelled():
            ticket.settle(Ticket.cancellation())
            return
        try:
            job = prepare(
                ticket.request,
                bundle=self.bundle,
                models=self._models,
                prompts=self._prompts,
                clock=clock,
            )
        except Exception as exc:
            ticket.settle(_as_engine_error(exc))
            return
        running = _Running(ticket=ticket, job=job)
        if job.done:
            self._finish(running)
        else:
            self._running.append(running)

    def _run(self, batch: list[_Running]) -> None:
        """One UNet call for a batch, one scheduler step for each of its jobs."""
        alive = [running for running in batch if not running.ticket.cancelled()]
        for running in batch:
            if running not in alive:
                running.ticket.settle(Ticket.cancellation())
        if not alive:
            return
        begin = time.perf_counter()
        try:
            noise_pred = self._predict(alive)
            seconds = time.perf_counter() - begin
            first = 0
            for running in alive:
                last = first + running.job.row_count
                running.job.advance(noise_pred[first:last])
                running.job.clock.add("unet", seconds)
                first = last
        except Exception as exc:
            for running in alive:
                running.ticket.settle(_as_engine_error(exc))
            return
        for running in alive:
            job = running.job
            assert job.foreseen is not None
            preview = partial(self._models.preview, job.foreseen[0])
            running.ticket.report_step(job.step, len(job.schedule), preview)
            if job.done:
                self._finish(running)
            else:
                self._running.append(running)

    def _predict(self, batch: list[_Running]) -> npt.NDArray[np.float32]:
        """The UNet's answer to all rows of a batch, in one call unless one job alone is too much
        for it."""
        rows = [row for running in batch for row in running.job.rows()]
        pixels = sum(running.pixels for running in batch)
        if pixels <= self._max_batch_pixels or len(rows) == 1:
            return self._models.unet(rows)
        size = max(1, self._max_batch_pixels * len(rows) // pixels)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return np.concatenate([self._models.unet(part).copy() for part in parts])

    def _finish(self, running: _Running) -> None:
        try:
            outcome: InpaintResult | EngineError = finish(running.job, self._models)
        except Exception as exc:
            outcome = _as_engine_error(exc)
        running.ticket.settle(outcome)


def _check_scheduler(bundle: Bundle) -> None:
    """A bundle whose own default cannot run is refused at once, not at the first request."""
    steps = bundle.defaults.num_inference_steps
    try:
        make_schedule(bundle.defaults.scheduler, bundle.scheduler, num_inference_steps=steps)
    except InputError as exc:
        raise BundleError(f"{bundle.path}: defaults: {exc}") from exc


def _as_engine_error(exc: Exception) -> EngineError:
    """An error of ours as it is; anything else is a defect, logged and wrapped."""
    if isinstance(exc, EngineError):
        return exc
    logger.error("the engine failed on a request", exc_info=exc)
    wrapped = SessionError(f"the engine failed on this request: {exc!r}")
    wrapped.__cause__ = exc
    return wrapped
