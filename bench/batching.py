"""Continuous batching against the same engine that makes one picture after the other.

Requests of 4, 8 and 25 steps come at random moments, at a share of what the engine can do one at a
time, measured just before. Both ways see the same arrivals and the same requests, by turns. Then
both are kept as busy as they can be.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from bench.report import median, percentile
from bench.sampling import fresh, hole
from engine import Engine, EngineError, InpaintRequest, Ticket

STEPS: Final = (4, 8, 25)
LOAD: Final = 0.7
CLIENTS: Final = {"continuous": 8, "fifo": 1}
"""Who ask again as soon as they have their picture, in the saturation of each way."""
MIX: Final = 12
"""Pictures of one saturation."""
WARM_UP: Final = 3
PATIENCE_SECONDS: Final = 600.0

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request and when it is due, in seconds from the beginning."""

    due: float
    request: InpaintRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Seconds from when a request was due to its picture, and the picture."""

    seconds: float
    images: Images


class Way(Protocol):
    """One way to serve arrivals; the outcomes are in their order."""

    def __call__(self, engine: Engine, arrivals: Sequence[Arrival], /) -> list[Outcome]: ...


def measure(
    *,
    bundle: Path | None,
    device: str,
    requests: int,
    rounds: int,
    seed: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Figures of both ways, and the medians of their ratios.

    Args:
        bundle: Its folder; the default bundle where None.
        device: See ``Engine.open``.
        requests: How many come in each round.
        rounds: How often both ways are gone; the first goes first in every other.
        seed: Of the arrivals and the steps; round ``i`` has ``seed + i``.
        tell: Called with what is being done.

    Raises:
        EngineError: When the engine cannot be opened, or a picture fails.
    """
    ways: dict[str, Way] = {"continuous": continuously, "fifo": one_at_a_time}
    with Engine.open(bundle, device=device) as engine:
        for i in range(WARM_UP):
            engine.inpaint(_request(i, STEPS[0]))
        taken: dict[str, list[list[float]]] = {name: [] for name in ways}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        capacities: list[float] = []
        steps: list[int] = []
        apart = 0
        for i in range(rounds):
            tell(f"batching: round {i + 1} of {rounds}")
            capacities.append(_capacity(engine))
            rng = np.random.default_rng(seed + i)
            arrivals = list(poisson(rng, requests, LOAD * capacities[-1]))
            steps += [a.request.num_inference_steps or 0 for a in arrivals]
            pictures: dict[str, list[Images]] = {}
            for name in ways if i % 2 == 0 else reversed(ways):
                outcomes = ways[name](engine, arrivals)
                taken[name].append([one.seconds for one in outcomes])
                pictures[name] = [one.images for one in outcomes]
            apart = max(apart, *map(_apart, *pictures.values()))
            better = np.mean(taken["fifo"][-1]) / np.mean(taken["continuous"][-1])
            tell(f"batching: capacity {capacities[-1]:.2f}/s, mean latency {better:.2f}x better")
            for name in reversed(ways) if i % 2 == 0 else ways:
                rates[name].append(_saturated(engine, CLIENTS[name], i))
        made_by = {"bundle": engine.bundle.path.name, "device": engine.device.name}
    return {
        "made_by": made_by,
        "trace": {
            "rounds": rounds,
            "requests_per_round": requests,
            "steps": "/".join(map(str, STEPS)),
            "load": LOAD,
            "fifo_capacity_per_s": round(median(capacities), 3),
            "fifo_capacity_lowest": round(min(capacities), 3),
            "clients_at_saturation": CLIENTS["continuous"],
        },
        **{name: _figures(taken[name], rates[name], steps) for name in ways},
        "ratios": _ratios(taken, rates) | {"pictures_differ_by_at_most": {"levels": apart}},
    }


def poisson(rng: np.random.Generator, count: int, rate: float) -> Iterator[Arrival]:
    """Requests at random moments, ``rate`` a second; each has a picture and a prompt of its own."""
    due = 0.0
    for i in range(count):
        due += float(rng.exponential(1 / rate))
        yield Arrival(due=due, request=_request(i, int(rng.choice(STEPS))))


def continuously(engine: Engine, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Hand in every request when it is due; the engine's loop does the rest."""
    ended = [0.0] * len(arrivals)
    tickets: list[Ticket] = []
    begin = time.perf_counter()
    for i, arrival in enumerate(arrivals):
        _sleep_until(begin + arrival.due)
        ticket = engine.submit(arrival.request)
        ticket.add_done_callback(partial(_note, ended, i))
        tickets.append(ticket)
    images = [ticket.result(PATIENCE_SECONDS).images for ticket in tickets]
    return [
        Outcome(seconds=end - begin - arrival.due, images=image)
        for end, arrival, image in zip(ended, arrivals, images, strict=True)
    ]


def one_at_a_time(engine: Engine, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """The same engine behind a queue: first in, first out, each to its end."""
    waiting: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
    outcomes: list[Outcome] = []
    failed: list[EngineError] = []
    begin = time.perf_counter()

    def work() -> None:
        while (arrival := waiting.get()) is not None:
            try:
                images = engine.inpaint(arrival.request).images
            except EngineError as exc:
                failed.append(exc)
                return
            seconds = time.perf_counter() - begin - arrival.due
            outcomes.append(Outcome(seconds=seconds, images=images))

    worker = threading.Thread(target=work, name="edgefill-fifo", daemon=True)
    worker.start()
    for arrival in arrivals:
        _sleep_until(begin + arrival.due)
        waiting.put(arrival)
    waiting.put(None)
    worker.join(PATIENCE_SECONDS)
    if failed:
        raise failed[0]
    return outcomes


def _capacity(engine: Engine) -> float:
    """Pictures a second, one at a time, of as many requests of each kind."""
    mix = [Arrival(due=0.0, request=_request(i, n)) for i, n in enumerate(STEPS * 2)]
    return len(mix) / max(one.seconds for one in one_at_a_time(engine, mix))


def _saturated(engine: Engine, clients: int, i: int) -> float:
    """Pictures a second of so many clients who ask again as soon as they have their picture."""
    mix = [_request(i * MIX + n, STEPS[n % len(STEPS)]) for n in range(MIX)]
    coming, lock = iter(mix), threading.Lock()
    failed: list[EngineError] = []

    def client() -> None:
        while True:
            with lock:
                request = next(coming, None)
            if request is None:
                return
            try:
                engine.inpaint(request)
            except EngineError as exc:
                failed.append(exc)
                return

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    if failed:
        raise failed[0]
    return len(mix) / (time.perf_counter() - begin)


def _request(i: int, steps: int) -> InpaintRequest:
    return InpaintRequest(
        image=fresh(i), mask=hole(), prompt=f"a red apple {i}", seed=i, num_inference_steps=steps
    )


def _note(ended: list[float], i: int, ticket: Ticket) -> None:
    ended[i] = time.perf_counter()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _apart(one: Images, other: Images) -> int:
    return int(np.abs(one.astype(np.int16) - other).max())


def _figures(
    rounds: Sequence[Sequence[float]], rates: Sequence[float], steps: Sequence[int]
) -> dict[str, Any]:
    seconds = [second for one in rounds for second in one]
    found: dict[str, Any] = {
        "mean_ms": round(float(np.mean(seconds)) * 1e3, 1),
        "median_ms": round(median(seconds) * 1e3, 1),
        "p95_ms": round(percentile(seconds, 0.95) * 1e3, 1),
        "max_ms": round(max(seconds) * 1e3, 1),
    }
    for kind in STEPS:
        mine = [s for s, n in zip(seconds, steps, strict=True) if n == kind]
        if mine:
            found[f"mean_ms_of_{kind}_steps"] = round(float(np.mean(mine)) * 1e3, 1)
    return found | {"saturated_per_s": round(median(rates), 3)}


def _ratios(taken: dict[str, list[list[float]]], rates: dict[str, list[float]]) -> dict[str, Any]:
    """Round by round, above 1 where continuous batching is the better; the median of the rounds."""
    pairs = list(zip(taken["fifo"], taken["continuous"], strict=True))
    per_round = {
        "mean_latency": [float(np.mean(f) / np.mean(c)) for f, c in pairs],
        "p95_latency": [percentile(f, 0.95) / percentile(c, 0.95) for f, c in pairs],
        "throughput": [c / f for f, c in zip(rates["fifo"], rates["continuous"], strict=True)],
    }
    return {
        name: {
            "median": round(median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        }
        for name, ratios in per_round.items()
    }
