"""One child process as its parent sees it: started, killed, and how it died."""

from __future__ import annotations

import contextlib
import logging
import signal
from dataclasses import asdict, dataclass
from typing import Final

from engine.cache import CACHE_BYTES
from service.engine_process.program import Program
from service.engine_process.wire import Link

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a child is started.

    Attributes:
        factory: ``module:callable`` that opens an engine; called as ``Engine.open`` is.
        path: The bundle's folder.
        fingerprint: Of the bundle as the parent read it; the child refuses another.
        device: Its name, or ``"auto"``.
        threads: See ``Engine.open``.
        max_batch_pixels: See ``Engine.open``.
        beat_seconds: The engine's loop says that it lives no more often than this.
        safety_checker: See ``Engine.open``.
        cache_bytes: See ``Engine.open``.
    """

    factory: str
    path: str
    fingerprint: str
    device: str
    threads: int
    max_batch_pixels: int
    beat_seconds: float
    safety_checker: str | None = None
    cache_bytes: int = CACHE_BYTES


class Worker:
    """A running child. It must be started from a thread that outlives it: see ``Program``."""

    def __init__(self, launch: Launch, program: Program | None = None) -> None:
        """Have the child open an engine; it says ``ready`` or ``failed`` over the link.

        Args:
            launch: What it opens.
            program: A child that waits for that; where None, one is started.

        Raises:
            OSError: If the system has no room for another process.
        """
        self._program: Final = Program() if program is None else program
        self.link: Final = Link(self._program.socket)
        self.pid: Final = self._program.pid
        self._end: str | None = None
        level = logging.getLogger("engine").getEffectiveLevel()
        with contextlib.suppress(ConnectionError):  # it is dead already, which the link will say
            self.link.send({"kind": "open", "log_level": level, **asdict(launch)})

    def kill(self) -> str:
        """Kill the child unless it is dead, and bury it.

        Returns:
            How it died, as the end of a sentence.
        """
        if self._end is None:
            self._end = self._bury()
        return self._end

    def _bury(self) -> str:
        status = self._program.close()
        if status is None:
            logger.error("engine process %d does not die: it hangs in the kernel", self.pid)
            return "does not die"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
