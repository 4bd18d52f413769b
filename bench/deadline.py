"""Deadlines: the share of answers in time, and what they cost in quality.

Deadlines are multiples of what the picture takes alone as it is asked for, so that every machine
can be asked the same. Beside each stands the share of answers that would have been in time without
any planning, at the same load.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench import material
from bench.report import median, spread
from engine import DeadlineMissed, Engine, InpaintRequest, InpaintResult, Ticket
from engine.request import MIN_DEADLINE

WARM_UP: Final = 3
LOADS: Final = (0.0, 0.4, 0.8)
"""Arrivals of others beside the request, as shares of what the engine can do one at a time."""

DEADLINES: Final = (0.3, 0.5, 0.75, 1.0, 1.5, 2.5)
"""As multiples of the picture's time alone."""

SETTLING: Final = 2
"""Requests of each deadline that are not counted."""


@dataclasses.dataclass(slots=True)
class _Seen:
    """What became of the requests of one deadline."""

    taken: list[float] = dataclasses.field(default_factory=list)
    results: list[InpaintResult] = dataclasses.field(default_factory=list)
    psnr: list[float] = dataclasses.field(default_factory=list)
    missed: int = 0


def measure(
    *,
    bundle: Path | None,
    device: str,
    repetitions: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The figures of a bundle on a device.

    Args:
        bundle: Its folder; the default bundle where None.
        device: See ``Engine.open``.
        repetitions: Requests for each deadline and load.
        tell: Called with what is being done.

    Raises:
        EngineError: When it cannot be opened or fails.
    """
    with Engine.open(bundle, device=device) as engine:
        request = material.direct()
        for _ in range(WARM_UP):
            engine.inpaint(request)
        wanted, alone = [], []
        for seed in range(repetitions):
            begin = time.perf_counter()
            wanted.append(engine.inpaint(dataclasses.replace(request, seed=seed)))
            alone.append(time.perf_counter() - begin)
        unit = median(alone)
        found: dict[str, Any] = {
            "made_by": {"bundle": engine.bundle.path.name, "device": engine.device.name}
            | {"steps": wanted[0].num_inference_steps, "requests_each": repetitions},
            "alone": spread(alone),
        }
        for load in LOADS:
            tell(f"deadline: load {load:.0%}")
            with _others(engine, request, rate=load / unit):
                found[f"load_{load:.0%}"] = _load(engine, request, wanted, unit=unit)
    return found


def _load(
    engine: Engine, request: InpaintRequest, wanted: list[InpaintResult], *, unit: float
) -> dict[str, Any]:
    as_asked = _ask(engine, request, wanted, deadline=None).taken
    rows: dict[str, Any] = {}
    for share in DEADLINES:
        deadline = max(MIN_DEADLINE, share * unit)
        _ask(engine, request, wanted[:SETTLING], deadline=deadline)
        seen = _ask(engine, request, wanted, deadline=deadline)
        rows[f"deadline_{deadline * 1e3:.0f}_ms"] = {
            "of_alone": share,
            "in_time": _share(seen.taken, deadline, len(wanted)),
            "missed": seen.missed,
            "in_time_as_asked": _share(as_asked, deadline, len(wanted)),
        } | _chosen(seen)
    return rows


def _ask(
    engine: Engine, request: InpaintRequest, wanted: list[InpaintResult], *, deadline: float | None
) -> _Seen:
    """Every seed once, one after the other."""
    seen = _Seen()
    hole = request.mask >= 128
    for seed, best in enumerate(wanted):
        begin = time.perf_counter()
        try:
            made = engine.inpaint(dataclasses.replace(request, seed=seed, deadline=deadline))
        except DeadlineMissed:
            seen.missed += 1
            continue
        seen.taken.append(time.perf_counter() - begin)
        seen.results.append(made)
        seen.psnr.append(psnr(made.images[0][hole], best.images[0][hole]))
    return seen


def _chosen(seen: _Seen) -> dict[str, Any]:
    """What the plans were, in the mean, and how far the pictures are from the best."""
    if not seen.results:
        return {}
    steps = [result.num_inference_steps for result in seen.results]
    sides = [max(result.working_size) for result in seen.results]
    changed = [db for db in seen.psnr if np.isfinite(db)]
    return {
        "steps_mean": round(sum(steps) / len(steps), 1),
        "side_mean_px": round(sum(sides) / len(sides)),
        "as_asked": len(seen.psnr) - len(changed),
        "psnr_db_of_the_others": round(median(changed), 1) if changed else None,
    }


def psnr(made: npt.NDArray[np.uint8], best: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = float(np.mean((made.astype(np.float64) - best) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _share(taken: list[float], deadline: float, count: int) -> float:
    return round(sum(seconds <= deadline for seconds in taken) / count, 2)


@contextmanager
def _others(engine: Engine, request: InpaintRequest, *, rate: float) -> Iterator[None]:
    """Requests without deadlines, at random moments, meanwhile.

    Args:
        rate: How many a second, in the mean.
    """
    over = threading.Event()
    tickets: list[Ticket] = []

    def arrive() -> None:
        rng = random.Random(5)
        while not over.wait(rng.expovariate(rate)):
            seed = rng.randrange(2**32)
            tickets.append(engine.submit(dataclasses.replace(request, seed=seed)))

    thread = threading.Thread(target=arrive, daemon=True)
    if rate:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if rate:
            thread.join()
        for ticket in tickets:
            ticket.cancel()
