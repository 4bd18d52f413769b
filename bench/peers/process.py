"""A peer's process, seen from the measuring side."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from bench.peers.environments import last_line

HOST: Final = Path(__file__).parent / "host.py"
ROOT: Final = Path(__file__).parent.parent.parent
STOP_SECONDS: Final = 20.0


class PeerError(Exception):
    """A peer did not do what it was asked; the message is one line that says why."""


class PeerProcess:
    """A running peer. It is asked one thing at a time.

    Args:
        command: What is run; see ``command_for``.
        log: File that gets all it writes to stderr, appended.
        environment: Variables beyond ours.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        log.touch()
        self._begin_of_log = log.stat().st_size
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=_clean_environment() | dict(environment or {}),
                text=True,
                errors="replace",
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, what: str, *, timeout: float, **fields: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Args:
            what: See ``bench.peers.host``.
            timeout: Seconds; the process is ended when they have passed.
            fields: Of the question.

        Raises:
            PeerError: When there is no answer, or it is none, or it is an error.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what} | fields) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout)
        except OSError:
            line = None
        except queue.Empty:
            self._process.kill()
            raise PeerError(f"gave no answer to {what} within {timeout:g} s") from None
        if line is None:
            raise PeerError(f"ended during {what} ({self._ended()})")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._process.kill()
            raise PeerError(f"answered {what} with {line.strip()[:80]!r}, which is no JSON object")
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer

    def stop(self) -> None:
        """End it, by force where it does not end by itself."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _ended(self) -> str:
        """How it ended, and its last words."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        said = self._log.read_bytes()[self._begin_of_log :].decode("utf-8", "replace")
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{how}; {last_line(said)}"


def command_for(python: Path, module: str, *, beside_us: bool) -> list[str]:
    """What runs a peer.

    Args:
        python: The interpreter of its environment.
        module: Of ``bench.peers``.
        beside_us: It may import what lies beside ``bench``.
    """
    return [str(python), "-P", str(HOST), module, *([str(ROOT)] if beside_us else [])]


def _clean_environment() -> dict[str, str]:
    """Ours without what would change the peers' packages or threads, and without the network."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("EDGEFILL_")
    }
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
