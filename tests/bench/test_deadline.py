"""The measurement of deadlines runs; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import deadline
from service.cli import main


def test_deadlines_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deadline, "LOADS", (0.0, 0.5))
    monkeypatch.setattr(deadline, "DEADLINES", (0.01, 100.0))
    monkeypatch.setattr(deadline, "WARM_UP", 1)
    monkeypatch.setattr(deadline, "SETTLING", 0)
    file = tmp_path / "figures.json"
    assert main(["bench", "deadline", "--repetitions", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["conditions"]["cores"] >= 1
    for load in ("load_0%", "load_50%"):
        impossible, loose = found[load].values()
        assert (impossible["in_time"], impossible["missed"]) == (0.0, 1)
        assert (loose["in_time"], loose["missed"], loose["steps_mean"]) == (1.0, 0, 8.0)
    assert "load 50%" in capsys.readouterr().out


def test_psnr() -> None:
    black, grey = np.zeros((2, 3), np.uint8), np.full((2, 3), 10, np.uint8)
    assert deadline.psnr(black, black) == float("inf")
    assert deadline.psnr(grey, black) == pytest.approx(28.13, abs=0.01)
