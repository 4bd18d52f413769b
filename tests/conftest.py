"""What every test gets: those that need the export extra are skipped where it is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

EXPORT_EXTRA = ("torch", "diffusers", "optimum")
VERSIONS = ("numpy", "opencv-python", "onnxruntime", "starlette", "torch", "diffusers")


def pytest_report_header() -> str:
    """The versions that matter for a failure report."""
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return "edgefill with " + ", ".join(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``export`` unless all of the extra is there."""
    missing = [name for name in EXPORT_EXTRA if importlib.util.find_spec(name) is None]
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs the export extra; missing: {', '.join(missing)}")
    for item in items:
        if item.get_closest_marker("export"):
            item.add_marker(skip)
