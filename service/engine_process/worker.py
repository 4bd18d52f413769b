"""One child process as its parent sees it: started, killed, and how it died.

The child is started as a program of its own and not by ``multiprocessing``: that would start a
resource tracker beside it, run the caller's main module again in the child, and pass arguments as
pickles. It gets the parent's import path, its environment without the service's own settings and
keys, standard error, and one descriptor.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from engine.cache import CACHE_BYTES
from service.engine_process.wire import Link

logger = logging.getLogger(__name__)

_BURY_SECONDS: Final = 10.0
_BOOT: Final = """\
import json, sys
options = json.loads(sys.argv[1])
sys.path[:] = options["import_path"]
from service.engine_process.child import main
main(options)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a child is started.

    Attributes:
        factory: ``module:callable`` that opens an engine; called as ``Engine.open`` is.
        path: The bundle's folder.
        device: Its name, or ``"auto"``.
        threads: See ``Engine.open``.
        max_batch_pixels: See ``Engine.open``.
        beat_seconds: The engine's loop says that it lives no more often than this.
        safety_checker: See ``Engine.open``.
        cache_bytes: See ``Engine.open``.
    """

    factory: str
    path: str
    device: str
    threads: int
    max_batch_pixels: int
    beat_seconds: float
    safety_checker: str | None = None
    cache_bytes: int = CACHE_BYTES


class Worker:
    """A running child. It must be started from a thread that outlives it: the kernel kills it when
    that thread ends, which is how it cannot be left behind."""

    def __init__(self, launch: Launch) -> None:
        """Start the child; it says ``ready`` or ``failed`` over the link.

        Raises:
            OSError: If the system has no room for another process.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(_options(launch, theirs))],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for data
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if not k.upper().startswith("EDGEFILL_")},
                process_group=0,  # a Ctrl-C in the terminal is for the parent alone
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.link: Final = Link(ours)
        self.pid: Final = self._process.pid
        self._end: str | None = None

    def kill(self) -> str:
        """Kill the child unless it is dead, and bury it.

        Returns:
            How it died, as the end of a sentence.
        """
        if self._end is None:
            self.link.close()
            self._process.kill()
            self._end = self._bury()
        return self._end

    def _bury(self) -> str:
        try:
            status = self._process.wait(_BURY_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the kernel, as a broken driver does it
            logger.error("engine process %d does not die: it hangs in the kernel", self.pid)
            return "does not die"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"


def _options(launch: Launch, sock: socket.socket) -> dict[str, Any]:
    return {
        "factory": launch.factory,
        "path": launch.path,
        "device": launch.device,
        "threads": launch.threads,
        "max_batch_pixels": launch.max_batch_pixels,
        "beat_seconds": launch.beat_seconds,
        "safety_checker": launch.safety_checker,
        "cache_bytes": launch.cache_bytes,
        "socket": sock.fileno(),
        "parent": os.getpid(),
        "log_level": logging.getLogger("engine").getEffectiveLevel(),
        "import_path": [entry for entry in sys.path if isinstance(entry, str)],
    }
