"""A submitted request, as its owner sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError, RequestCancelled
from engine.request import InpaintResult

logger = logging.getLogger(__name__)

_inside = threading.local()
"""Marks the thread that is running callbacks for an engine, which must not wait for itself."""

MakePreview: TypeAlias = Callable[[], npt.NDArray[np.uint8]]
OnStep: TypeAlias = Callable[[int, int, MakePreview], None]


class Ticket:
    """A promise of a result. Safe to use from any thread.

    Callbacks run in the engine's thread and should return at once; what they raise is logged and
    harms nobody.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._result: InpaintResult | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._finished = False
        self._on_step: list[OnStep] = []
        self._on_done: list[Callable[[Ticket], None]] = []

    def result(self, timeout: float | None = None) -> InpaintResult:
        """Wait for the result.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: If it is not done in time; the work goes on.
            RequestCancelled: If it was cancelled.
            EngineError: What went wrong; or if a callback waits for a result that is not there
                yet, and so would stop the engine that is to make it.
        """
        with self._condition:
            if not self._finished and getattr(_inside, "callback", False):
                raise EngineError("result was called from a callback, where it would wait for ever")
            if not self._condition.wait_for(lambda: self._finished, timeout):
                raise TimeoutError(f"the result was not ready within {timeout} seconds")
            if self._error is not None:
                raise self._error
            assert self._result is not None
            return self._result

    def done(self) -> bool:
        """Whether there is a result or an error."""
        with self._condition:
            return self._finished

    def cancel(self) -> bool:
        """Ask to stop before the next step; False when it is already done."""
        with self._condition:
            if self._finished:
                return False
            self._cancelled = True
            return True

    def cancelled(self) -> bool:
        """Whether cancelling was asked for."""
        with self._condition:
            return self._cancelled

    @property
    def watched(self) -> bool:
        """Whether anybody asked for steps."""
        with self._condition:
            return bool(self._on_step)

    def on_step(self, callback: OnStep) -> None:
        """Call ``callback(step, total, preview)`` after every step, counted from 1.

        ``preview()`` gives a small (h, w, 3) uint8 picture of the first sample as foreseen now;
        it costs next to nothing and may be called later, from any thread.
        """
        with self._condition:
            self._on_step.append(callback)

    def add_done_callback(self, callback: Callable[[Ticket], None]) -> None:
        """Call ``callback(ticket)`` once when done; at once, in this thread, when it already is."""
        with self._condition:
            if not self._finished:
                self._on_done.append(callback)
                return
        try:
            callback(self)
        except Exception:
            logger.exception("a callback failed")

    def report_step(self, step: int, total: int, preview: MakePreview) -> None:
        """For the engine: tell those who asked that a step was made."""
        with self._condition:
            callbacks = tuple(self._on_step)
        for callback in callbacks:
            self._call(partial(callback, step, total, preview))

    def settle(self, outcome: InpaintResult | BaseException) -> None:
        """For the engine: set the result or the error, once."""
        with self._condition:
            if self._finished:
                return
            if isinstance(outcome, BaseException):
                self._error = outcome
            else:
                self._result = outcome
            self._finished = True
            callbacks = tuple(self._on_done)
            self._on_done.clear()
            self._on_step.clear()
            self._condition.notify_all()
        for callback in callbacks:
            self._call(partial(callback, self))

    def _call(self, callback: Callable[[], None]) -> None:
        outer = getattr(_inside, "callback", False)
        _inside.callback = True
        try:
            callback()
        except BaseException:  # not even SystemExit may end the engine's thread
            logger.exception("a callback failed")
        finally:
            _inside.callback = outer

    @staticmethod
    def cancellation() -> RequestCancelled:
        """The error a cancelled ticket ends with."""
        return RequestCancelled("the request was cancelled")
