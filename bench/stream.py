"""The realtime stream: so many edits a second, and then one after the other.

An open loop sends edits at a constant rate to ``edgefill serve`` on one connection, whatever comes
back: by turns another mask (a PNG in a binary frame), another prompt, another seed. It is done with
few steps, where there is time for pictures, and with many, where every edit overtakes the one
before. Afterwards a closed loop asks again as soon as it has its picture. Counted is what a stream
promises: every edit has one end, in order, and an edit that is not the newest any more gives no
picture. Times count from when a message was handed to the socket.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bench import material
from bench.client import ClientError, Connection, get
from bench.report import slope, spread
from bench.server import Server, serving
from engine.image import encode_png

PATH: Final = "/api/v6/realtime/stream"
STEPS: Final = (4, 50)
"""Of the two open loops; the closed one has the first."""
WARM_UP_SECONDS: Final = 5.0
LEAST_SECONDS: Final = 6.0
MEGABYTE: Final = 1e6
PROMPTS: Final = ("a red apple", "a sunflower", "a heart", "a strawberry", "a pine tree")
_ENDS: Final = ("result", "cancelled", "error")
_ENGINE_MEMORY: Final = "edgefill_engine_process_resident_memory_bytes "


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came back, and when."""

    sent: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    out_of_order: int = 0
    stale_results: int = 0
    first_preview: dict[int, float] = field(default_factory=dict)
    results: list[float] = field(default_factory=list)
    cancellations: list[float] = field(default_factory=list)

    def take(self, message: dict[str, Any], now: float) -> None:
        """A message came."""
        kind, edit = message["type"], message["edit"]
        self.kinds[kind] += 1
        if kind == "preview":
            self.out_of_order += edit != self.ended + 1
            self.first_preview.setdefault(edit, now - self.sent[edit - 1])
            return
        self.out_of_order += edit != self.ended + 1
        self.ended = edit
        newest = edit == len(self.sent)
        if kind == "result":
            self.results.append(now - self.sent[edit - 1])
            # one that was on its way when the next message left is not stale
            self.stale_results += not newest and now - self.sent[edit] > 0.1
        elif kind == "cancelled" and not newest:
            self.cancellations.append(now - self.sent[edit])

    def figures(self) -> dict[str, Any]:
        """What it comes to."""
        return {
            "edits": len(self.sent),
            "ends": {kind: self.kinds[kind] for kind in _ENDS},
            "without_an_end": len(self.sent) - self.ended,
            "out_of_order": self.out_of_order,
            "results_of_stale_edits": self.stale_results,
            "previews": self.kinds["preview"],
            "to_first_preview": spread(list(self.first_preview.values())),
            "to_result": spread(self.results),
            "newer_message_to_cancelled": spread(self.cancellations),
        }


def measure(
    *,
    seconds: float,
    rate: float,
    repetitions: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Both loops.

    Args:
        seconds: How long the open loop lasts.
        rate: Edits a second in it.
        repetitions: Edits of the closed loop.
        tell: Called with what is being done.

    Raises:
        ServerError: When the server does not start, or ends.
        ClientError: When something comes back that should not.
    """
    with serving() as server:
        return asyncio.run(_measure(server, seconds, rate, repetitions, tell))


async def _measure(
    server: Server, seconds: float, rate: float, repetitions: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    address = f"ws://127.0.0.1:{server.port}{PATH}"
    found: dict[str, Any] = {}
    for steps in STEPS:
        async with connect(address, compression=None, proxy=None, max_size=None) as socket:
            tell(f"stream: {rate:g} edits a second of {steps} steps for {seconds:g} s")
            memory: list[tuple[float, float, float]] = []
            watching = asyncio.create_task(_watch(server, memory))
            opened = await _open_loop(socket, seconds, rate, steps)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        found[f"open_loop_{steps}_steps"] = (
            {"edits_a_second": rate, "seconds": seconds}
            | opened.figures()
            | {
                "memory_of_server": _memory([(at, one) for at, one, _ in memory]),
                "memory_of_engine": _memory([(at, other) for at, _, other in memory]),
            }
        )
    async with connect(address, compression=None, proxy=None, max_size=None) as socket:
        tell(f"stream: {repetitions} edits one after the other")
        closed = await _closed_loop(socket, repetitions)
    return found | {f"closed_loop_{STEPS[0]}_steps": closed.figures()}


def _memory(points: list[tuple[float, float]]) -> dict[str, float]:
    """What (seconds, megabytes) points come to; the first seconds are left out."""
    kept = [point for point in points if point[0] >= WARM_UP_SECONDS]
    half = kept[-1][0] / 2
    return {
        "first_mb": round(kept[0][1], 1),
        "last_mb": round(kept[-1][1], 1),
        "mb_per_minute_in_second_half": round(slope([p for p in kept if p[0] >= half]) * 60, 2),
    }


async def _watch(server: Server, memory: list[tuple[float, float, float]]) -> None:
    begin = time.perf_counter()
    connection = await Connection.open(server.port)
    try:
        while True:
            text = (await connection.ask(get("/metrics"))).body.decode()
            of_engine = next(line for line in text.splitlines() if line.startswith(_ENGINE_MEMORY))
            megabytes = float(of_engine.split()[1]) / MEGABYTE
            memory.append((time.perf_counter() - begin, server.memory() / MEGABYTE, megabytes))
            await asyncio.sleep(0.5)
    finally:
        connection.close()


def _messages(steps: int) -> Callable[[int], list[str | bytes]]:
    """Edit by number to its frames."""
    first = material.body(num_inference_steps=steps)
    masks = []
    for i in range(8):
        pixels = np.zeros((material.SIDE, material.SIDE, 3), np.uint8)
        cv2.circle(pixels, (160 + 24 * i, 256), 104, (255, 255, 255), -1)  # 13 % of the picture
        masks.append(encode_png(pixels))

    def frames(edit: int) -> list[str | bytes]:
        if edit == 0:
            return [json.dumps(first)]
        if edit % 3 == 0:
            return [json.dumps({"binary": ["mask_image"]}), masks[edit // 3 % len(masks)]]
        if edit % 3 == 1:
            return [json.dumps({"prompt": PROMPTS[edit // 3 % len(PROMPTS)]})]
        return [json.dumps({"seed": edit})]

    return frames


async def _hear(socket: ClientConnection, seen: Seen) -> dict[str, Any]:
    """The next message, with its pictures read."""
    text = await socket.recv()
    now = time.perf_counter()
    if not isinstance(text, str):
        raise ClientError("a picture that no message had announced")
    message: dict[str, Any] = json.loads(text)
    for _ in range(message.get("binary", 0)):
        await socket.recv()
    seen.take(message, now)
    if message["type"] == "error":
        raise ClientError(f"edit {message['edit']}: {message['message']}")
    return message


async def _say(socket: ClientConnection, seen: Seen, frames: list[str | bytes]) -> None:
    seen.sent.append(time.perf_counter())
    for frame in frames:
        await socket.send(frame)


async def _open_loop(socket: ClientConnection, seconds: float, rate: float, steps: int) -> Seen:
    seen, frames = Seen(), _messages(steps)
    count = max(1, round(seconds * rate))

    async def hear() -> None:
        while seen.ended < count:
            await _hear(socket, seen)

    hearing = asyncio.create_task(hear())
    begin = time.perf_counter()
    for edit in range(count):
        await asyncio.sleep(begin + edit / rate - time.perf_counter())
        await _say(socket, seen, frames(edit))
    await asyncio.wait_for(hearing, 60)
    return seen


async def _closed_loop(socket: ClientConnection, count: int) -> Seen:
    seen, frames = Seen(), _messages(STEPS[0])
    for edit in range(count):
        await _say(socket, seen, frames(edit))
        while (await _hear(socket, seen))["type"] not in _ENDS:
            pass
    return seen
