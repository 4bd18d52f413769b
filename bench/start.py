"""A server from its start to its first picture, and the memory it holds when nobody asks.

Every start is a server of its own on a data folder that is thrown away. Times count from the start
of its process; memory is that of the whole tree: server, engine, decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import material
from bench.client import ClientError, Connection, get, post
from bench.report import median, spread
from bench.server import SERVE, Server, ServerError, started
from bench.tree import Process, tree

REPETITIONS: Final = 5
PICTURES: Final = 20
SETTLE_SECONDS: Final = 5.0
"""How long a server that is ready is left alone before it counts as idle."""

_START_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.01
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
MEGABYTE: Final = 1e6


class ColdError(Exception):
    """The file cache could not be emptied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What one server showed: seconds from its start, and its processes; empty where that kind of
    start does not look."""

    listening: float
    ready: float
    first_picture: float = 0.0
    idle: tuple[Process, ...] = ()
    used: tuple[Process, ...] = ()


def measure(
    *,
    repetitions: int = REPETITIONS,
    cold: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The figures of so many starts of two kinds: one is asked for a picture at once, the other is
    left alone, looked at, asked for pictures, and looked at again.

    Args:
        repetitions: How often each kind of start is made.
        cold: Empty the system's file cache before every start. Where False, a start that does not
            count comes first, so that all files are in memory.
        tell: Called with what is being done.

    Raises:
        ColdError: When the cache cannot be emptied.
        ServerError: When a server does not start, or ends.
        ClientError: When an answer is not a picture.
        OSError: When a connection breaks.
    """
    if not cold:
        tell("a start that does not count")
        _run(busy=True, cold=False)
    asked, left = [], []
    for i in range(repetitions):
        tell(f"start {2 * i + 1} of {2 * repetitions}: asked for a picture at once")
        asked.append(_run(busy=True, cold=cold))
        tell(f"start {2 * i + 2} of {2 * repetitions}: left alone")
        left.append(_run(busy=False, cold=cold))
    runs = asked + left
    return {
        "how": {"files": "cold" if cold else "in memory", "settled_s": SETTLE_SECONDS},
        "start": {
            "listening": spread([run.listening for run in runs]),
            "ready": spread([run.ready for run in runs]),
            "first_picture": spread([run.first_picture for run in asked]),
        },
        "idle_mb": _megabytes([run.idle for run in left]),
        f"after_{PICTURES}_pictures_mb": _megabytes([run.used for run in left]),
    }


def drop_file_cache() -> None:
    """Have the system forget the contents of files; those that a running program has mapped, such
    as this one's libraries, stay.

    Raises:
        ColdError: When it is not allowed.
    """
    os.sync()
    try:
        _DROP_CACHES.write_text("1")
    except OSError as exc:
        raise ColdError(
            f"the file cache cannot be emptied: {_DROP_CACHES}: {exc.strerror}; "
            "only the root of a whole machine may do it"
        ) from exc


def _run(*, busy: bool, cold: bool) -> _Run:
    if cold:
        drop_file_cache()
    port = _free_port()
    command = [str(port) if part == "0" else part for part in SERVE]
    with started(command) as server:
        return asyncio.run(_watch(server, port, busy=busy))


async def _watch(server: Server, port: int, *, busy: bool) -> _Run:
    connection = await _connect(server, port)
    listening = time.monotonic() - server.begun
    sent = post(material.PATH, material.body())
    try:
        while (await connection.ask(get("/readyz"))).status != 200:
            await asyncio.sleep(_PAUSE_SECONDS)
        ready = time.monotonic() - server.begun
        if busy:
            await connection.picture(sent)
            return _Run(
                listening=listening, ready=ready, first_picture=time.monotonic() - server.begun
            )
    except (ClientError, OSError):
        await asyncio.sleep(_PAUSE_SECONDS)
        server.require_running()  # its log says more
        raise
    finally:
        connection.close()
    await asyncio.sleep(SETTLE_SECONDS)
    idle = tree(server.pid)
    connection = await Connection.open(port)
    for _ in range(PICTURES):
        await connection.picture(sent)
    used = tree(server.pid)
    connection.close()
    return _Run(listening=listening, ready=ready, idle=idle, used=used)


async def _connect(server: Server, port: int) -> Connection:
    """Connect as soon as somebody listens there."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        server.require_running()
        with contextlib.suppress(ConnectionError):
            return await Connection.open(port)
        await asyncio.sleep(_PAUSE_SECONDS)
    raise ServerError(f"the server does not listen after {_START_SECONDS:g} s")


def _free_port() -> int:
    """A port that is free now, known before the server says where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _megabytes(runs: Sequence[Sequence[Process]]) -> dict[str, Any]:
    """Medians of the tree and of each part, in megabytes; parts of several processes summed."""
    parts = list(dict.fromkeys(process.part for run in runs for process in run))
    found = {"all": _sums(runs)}
    for part in parts:
        found[part] = _sums([[p for p in run if p.part == part] for run in runs])
    return found


def _sums(runs: Sequence[Sequence[Process]]) -> dict[str, Any]:
    pss = [[p.pss for p in run] for run in runs]
    known = [sum(p for p in run if p is not None) for run in pss if None not in run]
    return {
        "processes": max(len(run) for run in runs),
        "rss": round(median([sum(p.rss for p in run) for run in runs]) / MEGABYTE, 1),
        "pss": round(median(known) / MEGABYTE, 1) if known else None,
    }
