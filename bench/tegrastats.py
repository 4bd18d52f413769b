"""Energy on a Jetson: what ``tegrastats`` says of the board's power, summed over a span of time.

Where there is no ``tegrastats``, or it names no rail that feeds the whole board, there is no figure
but the reason.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

INTERVAL_MS: Final = 100
WHOLE: Final = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that feed everything: Orin NX and Nano, Thor, and the first Nano."""

PARTS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Boards without such a rail: these together are the board."""

_RAIL: Final = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)")
"""A rail's power now and its mean, in mW; older boards leave the unit out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of a span of time; None where they are not known, and why."""

    joules: float | None
    reason: str | None


def watts(line: str) -> float | None:
    """The board's power in a line of tegrastats, in W; None where it does not say."""
    rails = {name: int(now) for name, now in _RAIL.findall(line)}
    for name in WHOLE:
        if name in rails:
            return rails[name] / 1e3
    for names in PARTS:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names) / 1e3
    return None


class Sampler:
    """Listens to tegrastats while it is open.

    Args:
        command: What is run; None: tegrastats, where this machine has it.

    Attributes:
        lines: How many were heard.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = command
        self._samples: list[tuple[float, float]] = []
        self.lines = 0
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        command = self._command
        if command is None and shutil.which("tegrastats"):
            command = ("tegrastats", "--interval", str(INTERVAL_MS))
        if command is not None:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            )
            self._reading = threading.Thread(target=self._read, daemon=True)
            self._reading.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._reading is not None:
            self._process.terminate()
            self._process.wait()
            self._reading.join()

    def energy(self, begin: float, end: float) -> Energy:
        """The energy between two times of the machine's monotonic clock."""
        if self._process is None:
            return Energy(joules=None, reason="no tegrastats on this machine")
        if self.lines and not self._samples:
            return Energy(joules=None, reason="tegrastats names no rail that feeds the board")
        return integrate(self._samples, begin, end)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                power = watts(line)
                if power is not None:
                    self._samples.append((time.monotonic(), power))
                self.lines += 1


def integrate(samples: Sequence[tuple[float, float]], begin: float, end: float) -> Energy:
    """Mean power of the samples in a span, times its length.

    Args:
        samples: (seconds, W).
        begin: Of the span, in seconds.
        end: Of the span.
    """
    within = [power for moment, power in samples if begin <= moment <= end]
    if not within:
        return Energy(joules=None, reason=f"no sample of tegrastats within {end - begin:.3f} s")
    return Energy(joules=sum(within) / len(within) * (end - begin), reason=None)
