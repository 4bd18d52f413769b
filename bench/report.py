"""Figures and the conditions they were measured under."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = ("numpy", "opencv-python", "onnxruntime", "starlette", "uvicorn", "sqlalchemy")


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that ``share`` of all do not exceed.

    Args:
        values: At least one, in any order.
        share: Above 0, at most 1.
    """
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value; of two middle ones, the mean."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile and maximum in milliseconds; empty where there is none."""
    if not seconds:
        return {"count": 0}
    return {
        "count": len(seconds),
        "median_ms": round(median(seconds) * 1e3, 2),
        "p90_ms": round(percentile(seconds, 0.90) * 1e3, 2),
        "p99_ms": round(percentile(seconds, 0.99) * 1e3, 2),
        "max_ms": round(max(seconds) * 1e3, 2),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through (x, y) points by least squares; 0 for fewer than two."""
    count = len(points)
    if count < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else 0.0


def conditions() -> dict[str, Any]:
    """The machine, the versions, the time and the commit of a run."""
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(load, 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def show(title: str, figures: Mapping[str, Any], *, indent: int = 0) -> str:
    """Figures as lines for people."""
    lines = [f"{'  ' * indent}{title}:"]
    for name, value in figures.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            lines.append(show(label, value, indent=indent + 1))
        elif isinstance(value, Mapping):
            parts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items())
            lines.append(f"{'  ' * (indent + 1)}{label}: {parts}")
        else:
            lines.append(f"{'  ' * (indent + 1)}{label}: {value}")
    return "\n".join(lines)


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON.

    Raises:
        OSError: When it cannot be written.
    """
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this runs from, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
