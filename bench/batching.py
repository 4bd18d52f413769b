"""Continuous batching against the same engine that makes one picture after the other.

Requests of 4, 8 and 25 steps come at random moments, at a share of what the engine can do one at a
time. Both ways see the same requests at the same moments, by turns, and nothing is cached. How much
the load was in truth is told by what the pictures took one at a time. Then the engine is kept as
busy as it can be.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
CLIENTS: Final = 8
"""Who ask again as soon as they have their picture, in the saturation."""
SETTLING: Final = 20
"""First requests of a round that are left out: they meet an engine that has nothing to do yet."""
MIX: Final = 24
"""Pictures of one saturation, and of one measurement of what the engine can do one at a time."""
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
    """Seconds from when a request was due to its picture, and the picture.

    ``alone`` is the seconds of these that the engine worked on nothing else; None where there was
    company.
    """

    seconds: float
    images: Images
    alone: float | None = None


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
    """Figures of both ways, and their ratios.

    Args:
        bundle: Its folder; the default bundle where None.
        device: See ``Engine.open``.
        requests: How many come in each round, more than ``SETTLING``.
        rounds: How often both ways are gone.
        seed: Of the arrivals and the steps; round ``i`` has ``seed + i``, and where that is even,
            batching goes first.
        tell: Called with what is being done.

    Raises:
        EngineError: When the engine cannot be opened, or a picture fails.
    """
    ways: dict[str, Way] = {"continuous": continuously, "fifo": one_at_a_time}
    seen = _Seen(ways=tuple(ways))
    with Engine.open(bundle, device=device, cache_bytes=0) as engine:
        for i in range(WARM_UP):
            engine.inpaint(_request(i, STEPS[0]))
        pace = _pace(engine, np.random.default_rng(seed))
        for i in range(rounds):
            tell(f"batching: round {i + 1} of {rounds}, at {LOAD:.0%} of {pace:.2f} a second")
            arrivals = poisson(np.random.default_rng(seed + i), requests, LOAD * pace)
            found: dict[str, list[Outcome]] = {}
            for name in ways if (seed + i) % 2 == 0 else reversed(ways):
                found[name] = ways[name](engine, arrivals)
            capacity = seen.add(arrivals, found, load=LOAD * pace)
            before, rate = _capacity(engine), _saturated(engine, i)
            seen.throughput.append(rate / ((before + _capacity(engine)) / 2))
            told = f"batching: mean latency {seen.better(-1):.2f}x better"
            tell(f"{told}, at a load of {seen.loads[-1]:.0%}")
            pace = capacity
        made_by = {"bundle": engine.bundle.path.name, "device": engine.device.name}
    return {
        "made_by": made_by,
        "trace": {
            "rounds": rounds,
            "requests_per_round": requests,
            "left_out_of_each": SETTLING,
            "steps": "/".join(map(str, STEPS)),
            "load": LOAD,
            "clients_at_saturation": CLIENTS,
        },
        **seen.figures(),
    }


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What the rounds gave. Latencies are in pictures: what one of the mix took alone in the same
    round."""

    ways: tuple[str, ...]
    units: dict[str, list[list[float]]] = field(default_factory=dict)
    capacities: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    apart: int = 0

    def __post_init__(self) -> None:
        self.units = {name: [] for name in self.ways}

    def add(
        self, arrivals: Sequence[Arrival], found: Mapping[str, list[Outcome]], *, load: float
    ) -> float:
        """Take a round into account.

        Args:
            arrivals: What came.
            found: The outcomes of both ways.
            load: How many came a second.

        Returns:
            Pictures a second that the engine made one at a time.
        """
        capacity = _made_alone(found["fifo"])
        self.capacities.append(capacity)
        self.loads.append(load / capacity)
        kept = arrivals[SETTLING:]
        self.steps += [arrival.request.num_inference_steps or 0 for arrival in kept]
        for name in self.ways:
            self.units[name].append([one.seconds * capacity for one in found[name][SETTLING:]])
        apart = map(_apart, *([one.images for one in found[name]] for name in self.ways))
        self.apart = max(self.apart, *apart)
        return capacity

    def better(self, i: int) -> float:
        """How many times the mean latency of round ``i`` is better than one at a time."""
        return _mean_ratio(self.units["fifo"][i], self.units["continuous"][i])

    def figures(self) -> dict[str, Any]:
        rounds = list(zip(self.units["fifo"], self.units["continuous"], strict=True))
        ratios = {
            "mean_latency": [_mean_ratio(fifo, continuous) for fifo, continuous in rounds],
            "p95_latency": [_p95_ratio(fifo, continuous) for fifo, continuous in rounds],
            "throughput": self.throughput,
        }
        return {
            "pictures_a_second_one_at_a_time": _by_round(self.capacities),
            "load_as_it_was": _by_round(self.loads),
            "latency_in_pictures": {name: self._latency(name) for name in self.ways},
            "times_better": {name: _by_round(values) for name, values in ratios.items()},
            "pictures_differ_by_at_most": {"levels": self.apart},
        }

    def _latency(self, name: str) -> dict[str, Any]:
        units = [unit for one in self.units[name] for unit in one]
        found = {
            "mean": round(float(np.mean(units)), 2),
            "median": round(median(units), 2),
            "p95": round(percentile(units, 0.95), 2),
            "max": round(max(units), 2),
        }
        for kind in STEPS:
            mine = [unit for unit, n in zip(units, self.steps, strict=True) if n == kind]
            if mine:
                found[f"mean_of_{kind}_steps"] = round(float(np.mean(mine)), 2)
        return found


def _mean_ratio(longer: Sequence[float], shorter: Sequence[float]) -> float:
    return float(np.mean(longer) / np.mean(shorter))


def _p95_ratio(longer: Sequence[float], shorter: Sequence[float]) -> float:
    return percentile(longer, 0.95) / percentile(shorter, 0.95)


def _by_round(ratios: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


def poisson(rng: np.random.Generator, count: int, rate: float) -> list[Arrival]:
    """Requests at random moments, ``rate`` a second; each has a picture and a prompt of its own.

    The moments are those of a Poisson process of which ``count`` fell into ``count / rate``
    seconds, and there are as many of each kind, so that the load is what is said and not what
    chance made.
    """
    moments = np.sort(rng.uniform(0, count / rate, count))
    kinds = rng.permutation(np.resize(STEPS, count))
    return [
        Arrival(due=float(due), request=_request(i, int(steps)))
        for i, (due, steps) in enumerate(zip(moments, kinds, strict=True))
    ]


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
            start = time.perf_counter()
            try:
                images = engine.inpaint(arrival.request).images
            except EngineError as exc:
                failed.append(exc)
                return
            end = time.perf_counter()
            outcomes.append(
                Outcome(seconds=end - begin - arrival.due, images=images, alone=end - start)
            )

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


def _pace(engine: Engine, rng: np.random.Generator) -> float:
    """Pictures a second, one at a time, with the pauses of ``LOAD``: what has paused is slower."""
    return _made_alone(one_at_a_time(engine, poisson(rng, MIX, LOAD * _capacity(engine))))


def _made_alone(outcomes: Sequence[Outcome]) -> float:
    """Pictures in each second that the engine worked on one of them alone."""
    return len(outcomes) / sum(one.alone or 0.0 for one in outcomes)


def _capacity(engine: Engine) -> float:
    """Pictures a second, one at a time, of as many requests of each kind."""
    mix = [Arrival(due=0.0, request=_request(i, STEPS[i % len(STEPS)])) for i in range(MIX)]
    return len(mix) / max(one.seconds for one in one_at_a_time(engine, mix))


def _saturated(engine: Engine, i: int) -> float:
    """Pictures a second of ``CLIENTS`` who ask again as soon as they have their picture."""
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

    threads = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
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
