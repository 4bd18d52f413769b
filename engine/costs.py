"""What the networks cost on this device: measured at every run, never guessed.

Costs are kept by network, pixels of a row and rows of a call. What was not run yet is read off a
line through what was, by pixels in all; of a network that never ran nothing is known.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy.typing as npt

from engine.bundle import VAE_SCALE_FACTOR, Bundle, Component, TensorSpec
from engine.sessions.base import Session

REST: Final = "rest"
"""The name under which stands what is done to a picture outside the networks."""

_RECENT: Final = 15
_KEPT: Final = 64


class Estimate:
    """What something takes: the median of its most recent runs.

    The first run of a shape also pays for what a device sets up; it counts until there is another.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._runs = 0

    def add(self, seconds: float) -> None:
        """Take a run into account."""
        if self._runs == 1:
            self._recent.clear()
        self._recent.append(seconds)
        self._runs += 1

    @property
    def seconds(self) -> float | None:
        """Seconds of one run; None before the first."""
        if not self._recent:
            return None
        ordered = sorted(self._recent)
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class CostTable:
    """Seconds of a network's run. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, OrderedDict[tuple[int, int], Estimate]] = {}

    def add(self, network: str, *, pixels: int, rows: int = 1, seconds: float) -> None:
        """Take a run into account.

        Args:
            network: A component of the bundle, or ``REST``.
            pixels: Pixels of a row at the working size; 1 where there is no picture.
            rows: Rows of the run.
            seconds: What it took.
        """
        key = (pixels, rows)
        with self._lock:
            kept = self._found.setdefault(network, OrderedDict())
            kept.setdefault(key, Estimate()).add(seconds)
            kept.move_to_end(key)
            if len(kept) > _KEPT:
                kept.popitem(last=False)

    def seconds(self, network: str, *, pixels: int, rows: int = 1) -> float | None:
        """What a run is thought to take; None where the network has never run."""
        with self._lock:
            kept = self._found.get(network, OrderedDict())
            exact = kept.get((pixels, rows))
            if exact is not None:
                return exact.seconds
            points: dict[int, list[float]] = {}
            for (row_pixels, count), estimate in kept.items():
                if estimate.seconds is not None:
                    points.setdefault(row_pixels * count, []).append(estimate.seconds)
        means = {total: sum(costs) / len(costs) for total, costs in points.items()}
        return _on_the_line(means, pixels * rows)

    def known(self) -> dict[str, dict[tuple[int, int], float]]:
        """Everything measured: seconds by network and (pixels of a row, rows)."""
        with self._lock:
            return {
                network: {key: e.seconds for key, e in kept.items() if e.seconds is not None}
                for network, kept in self._found.items()
            }

    def metering(
        self, bundle: Bundle, open_session: Callable[[Component], Session]
    ) -> Callable[[Component], Session]:
        """An opener whose sessions report every run here, under their component's name."""
        names = {id(component): name for name, component in bundle.components.items()}

        def opened(component: Component) -> Session:
            return _Metered(open_session(component), names[id(component)], self)

        return opened


class _Metered:
    """A session that reports what its runs take; see ``engine.sessions.base.Session``."""

    def __init__(self, session: Session, network: str, costs: CostTable) -> None:
        self._session = session
        self._network = network
        self._costs = costs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
        begin = time.perf_counter()
        outputs = self._session.run(feeds)
        seconds = time.perf_counter() - begin
        pixels, rows = _size(feeds)
        self._costs.add(self._network, pixels=pixels, rows=rows, seconds=seconds)
        return outputs

    def close(self) -> None:
        self._session.close()


def _size(feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
    """Pixels of a row, and rows, of what a network is fed: a picture, latents, or neither."""
    for name, array in feeds.items():
        if array.ndim == 4:
            cells = array.shape[2] * array.shape[3]
            scale = 1 if name == "image" else VAE_SCALE_FACTOR**2
            return cells * scale, array.shape[0]
    return 1, len(next(iter(feeds.values())))


def _on_the_line(points: Mapping[int, float], total: int) -> float | None:
    """The cost of ``total`` pixels by the line through its two neighbours.

    Outside what is known, the line through the nearest two goes on, but a smaller run is never
    thought to be cheaper than by its share of the pixels or dearer than the smallest, and a larger
    one never cheaper than by its share. With one point, costs go by the share.
    """
    if not points:
        return None
    known = sorted(points.items())
    nearest = known[0] if total < known[0][0] else known[-1]
    share = nearest[1] * total / nearest[0]
    if len(known) == 1:
        return share
    above = next((i for i, (at, _) in enumerate(known) if at >= total), len(known) - 1)
    (x0, y0), (x1, y1) = known[max(0, above - 1)], known[max(1, above)]
    line = y0 + (y1 - y0) * (total - x0) / (x1 - x0)
    if total < known[0][0]:
        return min(max(line, share), known[0][1])
    if total > known[-1][0]:
        return max(line, share)
    return line
