"""What the networks of an engine take, seen from outside: the runtime's own run, and nothing else.

Whatever the engine does round a run (checks, bindings, copies) is the engine's time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a network: its name in the bundle, the shapes it was fed, and its seconds."""

    network: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    seconds: float


class Probe:
    """Notes every network run of an engine. ``taken`` hands them over and begins anew."""

    def __init__(self, engine: Engine) -> None:
        self._runs: list[Run] = []
        for name, session in engine._loop._models.sessions.items():
            self._watch(name, session)

    def taken(self) -> list[Run]:
        """The runs since the last call, in order."""
        runs = list(self._runs)
        self._runs.clear()
        return runs

    def _watch(self, name: str, session: Any) -> None:
        while not hasattr(session._session, "run_with_iobinding"):
            session = session._session  # what the engine puts round a session is the engine's time
        watched = _Watched(session._session)
        run = session.run

        def noted(feeds: Mapping[str, Any]) -> Any:
            outputs = run(feeds)
            shapes = tuple((feed, array.shape) for feed, array in feeds.items())
            self._runs.append(Run(network=name, shapes=shapes, seconds=watched.seconds))
            return outputs

        session._session, session.run = watched, noted


class _Watched:
    """A session of ONNX Runtime that knows how long its last run took."""

    def __init__(self, session: Any) -> None:
        self._real: Final = session
        self.seconds = math.nan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        self._real.run_with_iobinding(*arguments)
        self.seconds = time.perf_counter() - begin
