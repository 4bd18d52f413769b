"""The measurement of the decoding processes runs, and says what it is of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.decoding import main


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "figures.json"
    assert main(["--side", "64", "--rounds", "3", "--json", str(written)]) == 0
    figures = json.loads(written.read_text())
    assert figures.pop("conditions")["cores"] >= 1
    assert figures.keys() == {"png", "jpeg"}
    assert all(row["thread_ms"] > 0 and row["processes_ms"] > 0 for row in figures.values())
    assert "png 64x64" in capsys.readouterr().out
