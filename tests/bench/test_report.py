"""The arithmetic of the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert report.percentile(values, 0.5) == 50
    assert report.percentile(values, 0.99) == 99
    assert report.percentile(values, 1) == 100
    assert report.percentile([3.0], 0.01) == 3
    assert report.median([4.0, 1.0, 2.0]) == 2
    assert report.median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_a_spread_is_in_milliseconds() -> None:
    assert report.spread([0.001, 0.003]) == {
        "count": 2,
        "median_ms": 2.0,
        "p90_ms": 3.0,
        "p99_ms": 3.0,
        "max_ms": 3.0,
    }
    assert report.spread([]) == {"count": 0}


def test_a_slope() -> None:
    assert report.slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert report.slope([(1, 1)]) == 0


def test_conditions_name_the_machine() -> None:
    found = report.conditions()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["packages"]["numpy"]


def test_reports_are_shown_and_kept(tmp_path: Path) -> None:
    figures = {"plain": 1, "group": {"a": 1, "b": 2}, "deep": {"group": {"x_y": 3}}}
    assert report.show("title", figures).splitlines() == [
        "title:",
        "  plain: 1",
        "  group: a 1, b 2",
        "  deep:",
        "    group: x y 3",
    ]
    report.save(tmp_path / "r.json", figures)
    assert json.loads((tmp_path / "r.json").read_text()) == figures
