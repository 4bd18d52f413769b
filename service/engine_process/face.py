"""The face of the engine in a child process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from engine import Bundle, EngineError, InpaintRequest, InpaintResult
from engine.cache import CACHE_BYTES, CacheStatistics
from engine.editing import EditingSession, OnEvent
from engine.engine import DEFAULT_BUNDLE, MAX_BATCH_PIXELS
from engine.job import draft
from engine.loop import MAX_RUNNING
from engine.safety_checker import name_of, require
from engine.sessions.devices import Device
from engine.ticket import OnStep
from service.engine_process.line import Entry, Line, ProcessTicket
from service.engine_process.patience import Patience
from service.engine_process.program import Program
from service.engine_process.supervisor import OnState, State, Supervisor
from service.engine_process.worker import Launch

logger = logging.getLogger(__name__)

ENGINE: Final = "engine:Engine.open"


class EngineProcess:
    """``engine.Engine`` in a process of its own. Safe to use from any thread.

    Open one with ``EngineProcess.open`` and close it when done; it is a context manager.

    Attributes:
        bundle: The bundle, read here too: requests are checked against it before they cross.
        device: What the child runs on.
        safety_checker: See ``Engine.safety_checker``.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        supervisor: Supervisor,
        *,
        safety_checker: str | None = None,
    ) -> None:
        self.bundle: Final = bundle
        self.device: Final = device
        self.safety_checker: Final = safety_checker
        self._supervisor: Final = supervisor

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        hang_seconds: float | None = None,
        start_seconds: float = 600.0,
        on_state: OnState | None = None,
        factory: str = ENGINE,
        safety_checker: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        program: Program | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> EngineProcess:
        """Start a child, and wait until it has opened a bundle and made a picture.

        Args:
            path: The bundle's folder; None opens the small model that ships with Edgefill.
            device: See ``Engine.open``.
            threads: See ``Engine.open``.
            max_batch_pixels: See ``Engine.open``.
            hang_seconds: A child whose loop gives no sign of life for so long while requests are
                inside is killed. Where None: 120, and on a CPU 600.
            start_seconds: How long a child may take to open the bundle and warm up.
            on_state: See ``EngineProcess.on_state``; given here, no change can be missed.
            factory: ``module:callable`` that opens the engine in the child.
            safety_checker: See ``Engine.open``.
            cache_bytes: See ``Engine.open``.
            program: Becomes the first child; it is the caller's to close in the end.
            meanwhile: Called here while the child opens the bundle; what it raises ends the child.

        Raises:
            BundleError: If the bundle is damaged or not understood.
            SessionError: If the device does not work or cannot open the networks.
            DeviceLost: If one child after the other dies while it starts.
        """
        folder = Path(DEFAULT_BUNDLE if path is None else path).absolute()
        bundle = Bundle.read(folder)  # the child looks into the files
        launch = Launch(
            factory=factory,
            path=str(folder),
            fingerprint=bundle.fingerprint,
            device=device,
            threads=threads,
            max_batch_pixels=max_batch_pixels,
            beat_seconds=1.0 if hang_seconds is None else min(1.0, hang_seconds / 10),
            safety_checker=None if safety_checker is None else str(Path(safety_checker).absolute()),
            cache_bytes=cache_bytes,
        )
        patience = Patience(hang_seconds=hang_seconds, start_seconds=start_seconds)
        supervisor = Supervisor(launch, Line(window=MAX_RUNNING), patience, program)
        if on_state is not None:
            supervisor.on_state(on_state)
        supervisor.start()
        try:
            if meanwhile is not None:
                meanwhile()
            supervisor.settled.wait()
            if supervisor.error is not None:
                raise supervisor.error
            if supervisor.device is None:
                raise EngineError("the engine was closed before it was open")
        except BaseException:
            supervisor.close()
            raise
        logger.info("engine process %s: %s", supervisor.pid, supervisor.device.detail)
        checker = name_of(bundle, safety_checker)
        return cls(bundle, supervisor.device, supervisor, safety_checker=checker)

    @property
    def ready(self) -> bool:
        """Whether a child is up that takes requests now."""
        return self._supervisor.state == "ready"

    @property
    def state(self) -> State:
        """``"starting"``, ``"ready"``, ``"restarting"`` or ``"stopped"``.

        Stopped is for good: closed, or given up because no child starts any more.
        """
        return self._supervisor.state

    @property
    def restarts(self) -> int:
        """How many children were lost so far."""
        return self._supervisor.restarts

    @property
    def cache_statistics(self) -> dict[str, CacheStatistics]:
        """How the child's caches fared when it last made a picture; empty before the first."""
        return self._supervisor.caches

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._supervisor.pid

    def on_state(self, callback: OnState) -> None:
        """Call ``callback(state)`` at every change of ``state``, from the supervisor's thread."""
        self._supervisor.on_state(callback)

    def submit(self, request: InpaintRequest, *, on_step: OnStep | None = None) -> ProcessTicket:
        """Hand in a request; where the child is being replaced, it waits for the new one.

        The request's arrays are copied; they may be changed afterwards. It is checked and drafted
        here, in the caller's thread: a bad request is refused at once and even while there is no
        child, what crosses has the size of the result, and a second attempt uses the same seed.

        Args:
            request: What to fill.
            on_step: See ``Ticket.on_step``; given here, no step can be missed.

        Raises:
            InputError: If the request does not fit the bundle.
            RuntimeUnavailable: If it asks for a safety check and there is no checker.
            DeviceLost: If the engine has given up.
            EngineError: If it is closed.
        """
        if request.safety_checker:
            require(self.safety_checker)
        submitted = time.perf_counter()
        made = draft(request, self.bundle)
        ticket = ProcessTicket(self._supervisor.notice)
        if on_step is not None:
            ticket.on_step(on_step)
        entry = Entry(
            ticket=ticket,
            draft=made,
            region=request.region,
            submitted=submitted,
            prepared=time.perf_counter() - submitted,
        )
        self._supervisor.submit(entry)
        return ticket

    def inpaint(self, request: InpaintRequest, timeout: float | None = None) -> InpaintResult:
        """Hand in a request and wait for its result; see ``Engine.inpaint``."""
        ticket = self.submit(request)
        try:
            return ticket.result(timeout)
        except TimeoutError:
            ticket.cancel()
            raise

    def edit(
        self, image: npt.NDArray[np.uint8], *, on_event: OnEvent | None = None
    ) -> EditingSession:
        """Edit one picture, change after change; see ``EditingSession``."""
        return EditingSession(self, image, on_event=on_event)

    def close(self) -> None:
        """Kill the child and wait for its end; what is not done by then ends as cancelled."""
        self._supervisor.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
