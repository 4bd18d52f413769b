"""How long a child may be silent, and how soon a dead one is replaced. Policy only: no processes
here, and the clock comes in as an argument (seconds of ``time.monotonic``).
"""

from __future__ import annotations

from typing import Final

BACK_OFF: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
"""Seconds before a child is replaced, by how many died in a row without finishing anything."""

FIRST_STARTS: Final = 3
"""How many children may die while they start before the engine counts as one that cannot open."""

LATER_STARTS: Final = 10
"""The same once an engine was open: in this time a driver may come back to its senses."""

SOUND_SECONDS: Final = 10.0
"""A child that was ready for so long is replaced at once."""

SLOW_DEVICES: Final = ("cpu", "openvino")
HANG_SECONDS_SLOW: Final = 600.0
"""Where nobody says otherwise: a large picture's step takes minutes there, and a CPU's kernels do
not hang."""

HANG_SECONDS: Final = 120.0
"""The same on a device with kernels of its own."""

_TICK: Final = 0.25
_FROZEN_SECONDS: Final = 4 * _TICK


class Patience:
    """The clocks of one engine process.

    Args:
        hang_seconds: How long the loop may be silent with requests inside; chosen by the device
            where None.
        start_seconds: How long a child may take to open and warm up.
    """

    def __init__(self, *, hang_seconds: float | None, start_seconds: float) -> None:
        self._hang_seconds = hang_seconds
        self._start_seconds: Final = start_seconds
        self._ready = False
        self._since = 0.0  # of the child's start, later of its being ready
        self._alive = 0.0  # the last sign of life from its loop
        self._looked = 0.0
        self._deaths = 0
        self._failed_starts = 0
        self._opened = False

    @property
    def tick(self) -> float:
        """How often to look at the clock while there is something to wait for."""
        return _TICK if self._hang_seconds is None else min(_TICK, self._hang_seconds / 4)

    def started(self, now: float) -> None:
        """A child was started."""
        self._ready, self._since, self._looked = False, now, now

    def ready(self, now: float, device: str) -> None:
        """It says that it can take requests."""
        if self._hang_seconds is None:
            slow = device in SLOW_DEVICES
            self._hang_seconds = HANG_SECONDS_SLOW if slow else HANG_SECONDS
        self._ready = self._opened = True
        self._since = now
        self._failed_starts = 0

    def alive(self, now: float) -> None:
        """Its loop moved, or was given something to do."""
        self._alive = now

    def finished(self) -> None:
        """It answered a request, so that it can be called sound."""
        self._deaths = 0

    def overdue(self, now: float, *, busy: bool) -> str | None:
        """What is wrong with the child, as the end of a sentence, if anything is.

        To be asked at every tick, after everything that the child has said was read: when the
        asker itself was stopped for a while, the child is not blamed.
        """
        late, self._looked = now - self._looked, now
        if late > _FROZEN_SECONDS:
            self._alive = now
            self._since += late if not self._ready else 0.0
        if not self._ready:
            if now - self._since > self._start_seconds:
                return f"was not ready after {self._start_seconds:g} s"
        elif busy and self._hang_seconds is not None and now - self._alive > self._hang_seconds:
            return f"gave no sign of life for {self._hang_seconds:g} s"
        return None

    def died(self, now: float) -> float:
        """The child is gone; says when the next one is due."""
        if self._ready:
            if now - self._since >= SOUND_SECONDS:
                self._deaths = 0
        else:
            self._failed_starts += 1
        wait = BACK_OFF[min(self._deaths, len(BACK_OFF) - 1)]
        self._deaths += 1
        self._ready = False
        return now + wait

    def exhausted(self) -> bool:
        """Whether so many children died while they started that another makes no sense."""
        return self._failed_starts >= (LATER_STARTS if self._opened else FIRST_STARTS)
