"""Both ways see the same requests and make the same pictures; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import batching
from engine import Engine, EngineError
from service.cli import main


def test_batching(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "STEPS", (1, 2, 3))
    monkeypatch.setattr(batching, "MIX", 3)
    monkeypatch.setattr(batching, "SETTLING", 2)
    file = tmp_path / "batching.json"
    command = ["bench", "batching", "--bundle", str(bundle_path), "--repetitions", "2"]
    assert main([*command, "--requests", "6", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["pictures_a_second_one_at_a_time"]["lowest"] > 0
    assert found["load_as_it_was"]["lowest"] > 0
    for way in ("continuous", "fifo"):
        latency = found["latency_in_pictures"][way]
        assert 0 < latency["median"] <= latency["p95"] <= latency["max"]
    for name in ("mean_latency", "p95_latency", "throughput"):
        ratio = found["times_better"][name]
        assert ratio["highest"] >= ratio["median"] >= ratio["lowest"] > 0
    assert found["trace"]["left_out_of_each"] == 2
    assert found["pictures_differ_by_at_most"]["levels"] <= 1


def test_arrivals_are_the_same_again_and_as_many_as_said() -> None:
    def made(seed: int) -> list[tuple[float, int | None]]:
        arrivals = batching.poisson(np.random.default_rng(seed), 300, 20.0)
        return [(one.due, one.request.num_inference_steps) for one in arrivals]

    first = made(1)
    assert first == made(1)
    assert first != made(2)
    moments, steps = zip(*first, strict=True)
    assert list(moments) == sorted(moments)
    assert 300 / moments[-1] == pytest.approx(20, rel=0.1)
    assert np.std(np.diff(moments)) == pytest.approx(1 / 20, rel=0.2)  # as of a Poisson process
    assert [steps.count(kind) for kind in batching.STEPS] == [100] * 3


def test_too_few_requests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "batching", "--requests", "20"]) == 2
    assert "error: --requests is 20; must be at least 21" in capsys.readouterr().err


def test_the_load_is_told_by_what_the_pictures_took_alone() -> None:
    black = np.zeros((1, 8, 8, 3), np.uint8)
    arrivals = batching.poisson(np.random.default_rng(1), 24, 4.0)
    seen = batching._Seen(ways=("continuous", "fifo"))
    alone = batching.Outcome(seconds=0.9, images=black, alone=0.2)
    shared = batching.Outcome(seconds=0.6, images=black + np.uint8(2))
    found = {"continuous": [shared] * 24, "fifo": [alone] * 24}
    assert seen.add(arrivals, found, load=4.0) == pytest.approx(5.0)
    assert seen.loads == [pytest.approx(0.8)]
    assert seen.units["fifo"] == [[pytest.approx(4.5)] * 4]
    assert seen.better(0) == pytest.approx(1.5)
    assert seen.apart == 2


def test_latency_counts_from_when_a_request_was_due(bundle_path: Path) -> None:
    """Two at once, one at a time: the second waits for the first."""
    with Engine.open(bundle_path, threads=1) as engine:
        two = [batching.Arrival(due=0.0, request=batching._request(i, 3)) for i in range(2)]
        first, second = batching.one_at_a_time(engine, two)
        assert second.seconds > first.seconds > 0
        assert first.alone is not None
        assert second.alone is not None
        assert second.seconds >= first.alone + second.alone
        assert [one.alone for one in batching.continuously(engine, two)] == [None, None]


def test_a_failure_ends_the_measurement(bundle_path: Path) -> None:
    engine = Engine.open(bundle_path, threads=1)
    engine.close()
    arrivals = [batching.Arrival(due=0.0, request=batching._request(0, 1))]
    with pytest.raises(EngineError, match="closed"):
        batching.one_at_a_time(engine, arrivals)
    with pytest.raises(EngineError, match="closed"):
        batching._saturated(engine, 0)
