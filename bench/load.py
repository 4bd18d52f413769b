"""Overload: an open loop at a multiple of what the server can do.

Arrivals come at a constant rate whatever the server answers, and every time is measured from the
moment a request was due, not from when the client got round to sending it. The engine is
``bench.stub``, everything else is the real service with its default limits. The client is this
process alone; how late it sends and how busy it is stand in the report.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final

from bench import material
from bench.client import ClientError, Connection, Reply, get, post
from bench.report import percentile, slope, spread
from bench.server import Server, serving
from service.settings import Settings

STUB_SECONDS: Final = 0.1
CAPACITY_SECONDS: Final = 5.0
SETTLING_SECONDS: Final = 2.0
LEAST_SECONDS: Final = 4.0
PROBE_SECONDS: Final = 0.1
LEAST_GOODPUT: Final = 0.95
"""What the server promises of its capacity under overload; the bound of the wait follows from it
and the queue's limits."""

MANY_KEYS: Final = 20
IDLE_SECONDS: Final = 3.0
"""The server closes a connection after 5 idle seconds."""

MEGABYTE: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: how large the bodies are, and of how many keys.

    With one key its own limit is what refuses (429), with many the limit of all (503).
    """

    large: bool
    keys: int

    @property
    def name(self) -> str:
        """For the report."""
        return f"{'large' if self.large else 'small'}_bodies_{'one' if self.keys == 1 else 'many'}"

    def requests(self) -> Iterator[bytes]:
        """Prepared requests without end."""
        make = material.body if self.large else material.small_body
        return cycle([post(material.PATH, make(key=f"bench{i}")) for i in range(self.keys)])


CASES: Final = tuple(Case(large=large, keys=n) for large in (False, True) for n in (1, MANY_KEYS))


@dataclass(slots=True)
class _Seen:
    """What the client saw; times in seconds."""

    answers: list[tuple[float, float, int]] = field(default_factory=list)  # due, taken, status
    late: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)


def measure(
    *,
    seconds: float,
    lanes: int = 1,
    factor: float = 5.0,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The figures of all cases.

    Args:
        seconds: How long each case lasts.
        lanes: How many pictures the stub engine makes at a time.
        factor: Arrivals as a multiple of the measured capacity.
        tell: Called with what is being done.

    Raises:
        ServerError: When a server does not start, or ends.
        ClientError: When the server does not speak HTTP.
    """
    command = ("-m", "bench.stub", "--seconds", str(STUB_SECONDS), "--lanes", str(lanes))
    found: dict[str, Any] = {}
    for case in CASES:
        tell(f"load: {case.name.replace('_', ' ')}, {seconds:g} s")
        with serving(command) as server:
            found[case.name] = asyncio.run(_case(server, case, seconds=seconds, factor=factor))
    return {"stub_seconds": STUB_SECONDS, "lanes": lanes, "factor": factor, **found}


async def _case(server: Server, case: Case, *, seconds: float, factor: float) -> dict[str, Any]:
    settings = Settings.model_construct()
    pool = _Pool(server.port)
    capacity = await _capacity(pool, case, clients=settings.slots + 4)
    seen = _Seen()
    busy, begin = time.process_time(), time.monotonic()
    watching = [
        asyncio.create_task(_probe(server.port, seen)),
        asyncio.create_task(_weigh(server, seen)),
    ]
    try:
        await _arrive(pool, case, seen, rate=capacity * factor, seconds=seconds)
    finally:
        for task in watching:
            task.cancel()
        pool.close()
    await asyncio.gather(*watching, return_exceptions=True)
    share = (time.process_time() - busy) / (time.monotonic() - begin)
    limit = settings.queue_limit if case.keys == 1 else settings.queue_total
    return _figures(
        seen,
        capacity=capacity,
        rate=capacity * factor,
        bound=(limit + settings.slots) / (capacity * LEAST_GOODPUT),
        window=(begin + SETTLING_SECONDS, begin + seconds),
    ) | {"client_cpu_share": round(share, 2)}


async def _capacity(pool: _Pool, case: Case, *, clients: int) -> float:
    """Pictures a second when ``clients`` ask again as soon as they are answered."""
    requests = case.requests()
    done = 0
    end = time.monotonic() + SETTLING_SECONDS
    counting = False

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            reply = await pool.ask(next(requests))
            if reply.status != 200:
                raise ClientError(f"HTTP {reply.status} while the capacity was measured")
            done += counting

    await asyncio.gather(*(client() for _ in range(clients)))
    counting, begin = True, time.monotonic()
    end = begin + CAPACITY_SECONDS
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.monotonic() - begin)


async def _arrive(pool: _Pool, case: Case, seen: _Seen, *, rate: float, seconds: float) -> None:
    requests = case.requests()
    begin = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()

    async def one(request: bytes, due: float) -> None:
        seen.late.append(time.monotonic() - due)
        try:
            reply = await pool.ask(request)
        except (ClientError, OSError) as exc:
            seen.broken[type(exc).__name__] += 1
            return
        if reply.status in (429, 503) and "retry-after" not in reply.headers:
            seen.broken["no Retry-After"] += 1
        seen.answers.append((due, time.monotonic() - due, reply.status))

    for i in range(int(rate * seconds)):
        due = begin + i / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(next(requests), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def _probe(port: int, seen: _Seen) -> None:
    connection = await Connection.open(port)
    try:
        while True:
            begin = time.monotonic()
            reply = await connection.ask(get("/readyz"))
            seen.ready.append(time.monotonic() - begin)
            if reply.status != 200:
                seen.broken[f"/readyz {reply.status}"] += 1
            await asyncio.sleep(PROBE_SECONDS)
    finally:
        connection.close()


async def _weigh(server: Server, seen: _Seen) -> None:
    while True:
        seen.memory.append((time.monotonic(), server.memory() / MEGABYTE))
        await asyncio.sleep(0.5)


class _Pool:
    """Kept-open connections, as many as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, Connection]] = []

    async def ask(self, request: bytes) -> Reply:
        """Ask on an idle connection, or a new one; a broken one is not used again."""
        connection = self._fresh() or await Connection.open(self._port)
        try:
            reply = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        self._idle.append((time.monotonic(), connection))
        return reply

    def _fresh(self) -> Connection | None:
        """The connection used last, unless the server may be about to close it."""
        if not self._idle:
            return None
        since, connection = self._idle.pop()
        if time.monotonic() - since < IDLE_SECONDS:
            return connection
        connection.close()
        self.close()  # the others have been idle for longer
        return None

    def close(self) -> None:
        """Hang up."""
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()


def _figures(
    seen: _Seen, *, capacity: float, rate: float, bound: float, window: tuple[float, float]
) -> dict[str, Any]:
    """What the answers to the requests due in a window of time come to."""
    first, last = window
    inside = [answer for answer in seen.answers if first <= answer[0] < last]
    made = [due + taken for due, taken, status in seen.answers if status == 200]
    accepted = [taken for _, taken, status in inside if status == 200]
    refused = [taken for _, taken, status in inside if status in (429, 503)]
    goodput = sum(first <= end < last for end in made) / (last - first)
    second_half = [point for point in seen.memory if point[0] >= (first + last) / 2]
    return {
        "capacity_per_s": round(capacity, 1),
        "arrivals_per_s": round(rate, 1),
        "statuses": dict(sorted(Counter(str(status) for _, _, status in inside).items())),
        "broken": dict(seen.broken),
        "goodput_share": round(goodput / capacity, 3),
        "bound_of_accepted_ms": round(bound * 1e3),
        "accepted": spread(accepted),
        "refused": spread(refused),
        "readyz": spread(seen.ready),
        "memory_mb": {
            "first": round(seen.memory[0][1], 1),
            "last": round(seen.memory[-1][1], 1),
            "per_minute_in_second_half": round(slope(second_half) * 60, 2),
        },
        "client_late_p99_ms": round(percentile(seen.late, 0.99) * 1e3, 2),
    }
