"""Memory in the long run: thousands of pictures through one server.

The engine is ``bench.stub`` and takes a millisecond, so that as many pictures are made in a minute
as otherwise in an hour. What a process takes once, such as the pages of a database's cache, comes
in the first of them; what grows with every request shows at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from bench import material
from bench.client import ClientError, Connection, post
from bench.report import slope
from bench.server import Server, serving

STUB_SECONDS: Final = 0.001
CLIENTS: Final = 4
SAMPLES: Final = 40
"""How often memory is read."""

LEAST: Final = 40
MEGABYTE: Final = 1e6


def measure(
    *, requests: int, tell: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, float]]:
    """Resident memory of the server without its children, after a share of the requests.

    Args:
        requests: How many pictures are made, of small bodies and of large ones each.
        tell: Called with what is being done.

    Raises:
        ServerError: When a server does not start, or ends.
        ClientError: When an answer is not a picture.
    """
    found = {}
    for name, make in (("small_bodies", material.small_body), ("large_bodies", material.body)):
        tell(f"endurance: {name.replace('_', ' ')}, {requests} pictures")
        with serving(("-m", "bench.stub", "--seconds", str(STUB_SECONDS))) as server:
            points = asyncio.run(_drive(server, post(material.PATH, make()), requests))
        found[name] = figures(points)
    return found


def figures(points: list[tuple[float, float]]) -> dict[str, float]:
    """What (pictures made, megabytes) points come to."""
    half = points[-1][0] / 2
    at_half = next(memory for made, memory in points if made >= half)
    return {
        "pictures": int(points[-1][0]),
        "first_mb": round(points[0][1], 1),
        "half_way_mb": round(at_half, 1),
        "last_mb": round(points[-1][1], 1),
        "mb_per_1000_in_second_half": round(
            slope([point for point in points if point[0] >= half]) * 1000, 3
        ),
    }


async def _drive(server: Server, request: bytes, requests: int) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    begun = made = 0
    step = max(1, requests // SAMPLES)

    async def client() -> None:
        nonlocal begun, made
        connection = await Connection.open(server.port)
        while begun < requests:
            begun += 1
            reply = await connection.ask(request)
            if reply.status != 200:
                raise ClientError(f"HTTP {reply.status} instead of a picture")
            made += 1
            if made % step == 0:
                points.append((made, server.memory() / MEGABYTE))
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return points
