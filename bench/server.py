"""A server in a process of its own, started as a user starts it, on a data folder that is thrown
away."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

SERVE: Final = ("-m", "service.cli", "serve", "--port", "0")
START_SECONDS: Final = 120.0
_SERVING: Final = re.compile(r"serving: http://127\.0\.0\.1:(\d+)")
_ROOT: Final = Path(__file__).parent.parent


class ServerError(Exception):
    """The server did not start, or ended by itself; the message holds the end of its log."""


class Server:
    """A running server.

    Attributes:
        port: Where it listens on 127.0.0.1.
        pid: Its process; the engine's process is its child.
        data_dir: Its data folder.
        begun: When it was started, by ``time.monotonic``.
    """

    def __init__(self, process: subprocess.Popen[str], data_dir: Path, begun: float) -> None:
        self._process = process
        self.begun = begun
        self._log: deque[str] = deque(maxlen=20)
        self._ready = threading.Event()
        self.data_dir = data_dir
        self.port = 0
        self.pid = process.pid
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def wait(self) -> None:
        """Wait until it says where it serves, and until ``/readyz`` is content.

        Raises:
            ServerError: When it does not come to that.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._ready.wait(0.05):
                with contextlib.suppress(OSError):
                    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                    opener.open(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                    return
                time.sleep(0.05)
        raise ServerError("the server did not start:\n" + "".join(self._log))

    def require_running(self) -> None:
        """Nothing where it runs.

        Raises:
            ServerError: When it has ended.
        """
        if self._process.poll() is not None:
            raise ServerError("the server has ended:\n" + "".join(self._log))

    def memory(self) -> int:
        """Resident bytes of the server without its children.

        Raises:
            ServerError: When it has ended.
        """
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()
        except OSError as exc:
            raise ServerError("the server has ended:\n" + "".join(self._log)) from exc
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it as a user would, and by force where that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reading.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self._log.append(line)
                found = None if self._ready.is_set() else _SERVING.search(line)
                if found:
                    self.port = int(found[1])
                    self._ready.set()


@contextlib.contextmanager
def serving(
    command: Sequence[str] = SERVE, *, settings: Mapping[str, object] | None = None
) -> Iterator[Server]:
    """Run a server meanwhile, from when it is ready.

    Args:
        command: Arguments for Python.
        settings: ``EDGEFILL_`` variables by their short names; no other settings are passed on.

    Raises:
        ServerError: When it does not start.
    """
    with started(command, settings=settings) as server:
        server.wait()
        yield server


@contextlib.contextmanager
def started(
    command: Sequence[str] = SERVE, *, settings: Mapping[str, object] | None = None
) -> Iterator[Server]:
    """Start a server, and do not wait for it; see ``serving``."""
    with tempfile.TemporaryDirectory(prefix="edgefill-bench-") as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFILL_")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # one that is installed is compiled
        environment["PYTHONPATH"] = str(_ROOT)
        environment["EDGEFILL_DATA_DIR"] = folder
        for name, value in (settings or {}).items():
            environment[f"EDGEFILL_{name.upper()}"] = str(value)
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        server = Server(process, Path(folder), begun)
        try:
            yield server
        finally:
            server.stop()
