"""What really works on this machine, and opening a network on it.

A list of compiled-in providers proves nothing; a device counts as there when it ran a kernel.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.bundle import Component
from engine.errors import RuntimeUnavailable, SessionError
from engine.sessions.base import Session

DEVICES: Final = ("auto", "cpu")
"""The names that may be asked for."""

_INSTALL: Final = "pip install 'edgefill[cpu]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device in use: its name, and in words what runs there and why it was chosen."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a report: what was looked at, whether it works, and what would mend it."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def preload() -> None:
    """Load the runtime ahead of its use."""
    importlib.import_module("engine.sessions.ort")


def select(name: str) -> Device:
    """Choose a device.

    Args:
        name: One of ``DEVICES``; ``"auto"`` takes the fastest that ran a kernel.

    Raises:
        RuntimeUnavailable: If the name is unknown or the device does not work here.
    """
    if name not in DEVICES:
        allowed = ", ".join(DEVICES)
        raise RuntimeUnavailable(f"device {name!r} is not supported; allowed: {allowed}")
    detail = _probe_cpu()
    chosen = " (auto: the only device this version runs on)" if name == "auto" else ""
    return Device(name="cpu", detail=f"{detail} on the CPU{chosen}")


def open_session(
    device: Device, directory: Path, component: Component, *, threads: int = 0
) -> Session:
    """Open a network of a bundle on a device.

    Raises:
        BundleError: If the graph is not what the bundle declares.
        SessionError: If the runtime cannot open it.
    """
    from engine.sessions.ort import OrtSession

    return OrtSession(directory, component, threads=threads)


def report() -> tuple[Finding, ...]:
    """Try every device this version knows, for people who ask what works."""
    try:
        return (Finding(name="cpu", ok=True, detail=_probe_cpu()),)
    except SessionError as exc:
        return (Finding(name="cpu", ok=False, detail=str(exc), hint=_INSTALL),)


def _probe_cpu() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        raise RuntimeUnavailable(
            f"no runtime is installed; on a CPU `{_INSTALL}` brings one, "
            "with an NVIDIA GPU `pip install 'edgefill[gpu]'` does"
        )
    try:
        from engine.sessions import ort
    except ImportError as exc:
        raise RuntimeUnavailable(f"onnxruntime is installed but cannot be loaded: {exc}") from exc
    return ort.probe()
