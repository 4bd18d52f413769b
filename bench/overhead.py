"""Face overhead: what HTTP, the job store and the child process add to the engine's own time.

One request (512x512, PNGs in base64, a link out) goes by turns straight through an ``Engine`` in
this process, its pictures decoded beforehand, and through a server in processes of its own. The
overhead is the median of the paired differences. Beside it stands the same without pairs: for each
answer of the server, the time that the client saw less the time that the engine says it worked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from bench import material
from bench.client import Connection, post
from bench.report import spread
from bench.server import SERVE, serving
from bench.stages import stages
from engine import Engine

WARM_UP: Final = 5
REPETITIONS: Final = 40
PAUSE_SECONDS: Final = 0.05
"""Between two requests to the stub: a client that asks again at once would meet the tail of its
last request."""

STUB: Final = ("-m", "bench.stub", "--seconds", "0")


def measure(
    *, repetitions: int = REPETITIONS, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """All figures of the face overhead.

    Args:
        repetitions: How often each way is gone.
        tell: Called with what is being done.

    Raises:
        ServerError: When a server does not start.
        ClientError: When an answer is not a picture.
    """
    tell("face overhead: the default bundle")
    default = asyncio.run(_side_by_side(repetitions))
    tell("face overhead: an engine that takes no time")
    stub = asyncio.run(_through_the_stub(repetitions))
    tell("face overhead: each stage by itself")
    return {"default_bundle": default, "stub_engine": stub, "stages_alone": stages(repetitions)}


async def _side_by_side(repetitions: int) -> dict[str, Any]:
    request, sent = material.direct(), post(material.PATH, material.body())
    straight: list[float] = []
    served: list[float] = []
    within: list[float] = []
    with Engine.open() as engine, serving(SERVE) as server:
        connection = await Connection.open(server.port)
        for i in range(WARM_UP + repetitions):
            begin = time.perf_counter()
            engine.inpaint(request)
            middle = time.perf_counter()
            worked = await _picture(connection, sent)
            end = time.perf_counter()
            if i >= WARM_UP:
                straight.append(middle - begin)
                served.append(end - middle)
                within.append(end - middle - worked)
        connection.close()
    return {
        "engine_alone": spread(straight),
        "served": spread(served),
        "overhead": spread(_differences(served, straight)),
        "overhead_within": spread(within),
    }


async def _through_the_stub(repetitions: int) -> dict[str, Any]:
    sent = post(material.PATH, material.body())
    within: list[float] = []
    with serving(STUB) as server:
        connection = await Connection.open(server.port)
        for i in range(WARM_UP + repetitions):
            await asyncio.sleep(PAUSE_SECONDS)
            begin = time.perf_counter()
            worked = await _picture(connection, sent)
            if i >= WARM_UP:
                within.append(time.perf_counter() - begin - worked)
        connection.close()
    return {"overhead_within": spread(within)}


async def _picture(connection: Connection, sent: bytes) -> float:
    """Ask for a picture; the seconds that the engine worked on it."""
    timings = (await connection.picture(sent))["meta"]["timings"]
    return float(timings["total"] - timings["queue"])


def _differences(longer: Sequence[float], shorter: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(longer, shorter, strict=True)]
