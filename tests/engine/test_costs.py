"""Running estimates: they settle, follow, and say nothing of what never ran."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.costs import CostTable, Estimate
from engine.engine import Engine


def test_an_estimate_settles_whatever_single_runs_do() -> None:
    rng = random.Random(3)
    estimate = Estimate()
    assert estimate.seconds is None
    for _ in range(200):
        outlier = 5.0 if rng.random() < 0.2 else 1.0
        estimate.add(0.1 * outlier * rng.uniform(0.9, 1.1))
    assert estimate.seconds == pytest.approx(0.1, rel=0.1)


def test_an_estimate_follows_a_change() -> None:
    estimate = Estimate()
    for seconds in [0.1] * 100 + [0.3] * 8:
        estimate.add(seconds)
    assert estimate.seconds == pytest.approx(0.3)


def test_the_first_run_counts_only_while_it_is_the_only_one() -> None:
    estimate = Estimate()
    estimate.add(9.0)
    assert estimate.seconds == 9.0
    estimate.add(1.0)
    assert estimate.seconds == 1.0


def table(points: dict[tuple[int, int], float]) -> CostTable:
    costs = CostTable()
    for (pixels, rows), seconds in points.items():
        costs.add("unet", pixels=pixels, rows=rows, seconds=seconds)
    return costs


def test_what_never_ran_costs_nothing_that_is_known() -> None:
    assert CostTable().seconds("unet", pixels=64) is None
    assert table({(64, 1): 1.0}).seconds("vae_decoder", pixels=64) is None


def test_one_size_gives_the_others_by_their_share() -> None:
    costs = table({(100, 2): 1.0})
    assert costs.seconds("unet", pixels=100, rows=2) == 1.0
    assert costs.seconds("unet", pixels=100, rows=1) == 0.5
    assert costs.seconds("unet", pixels=200, rows=4) == 4.0


def test_between_and_beyond_the_sizes_that_ran() -> None:
    costs = table({(100, 1): 1.0, (200, 1): 1.5, (400, 1): 4.5})
    assert costs.seconds("unet", pixels=150) == pytest.approx(1.25)
    assert costs.seconds("unet", pixels=100, rows=3) == pytest.approx(3.0)
    assert costs.seconds("unet", pixels=50) == pytest.approx(0.75)  # the line, above the share
    assert costs.seconds("unet", pixels=800) == pytest.approx(10.5)  # the line, above the share
    flat = table({(100, 1): 1.0, (200, 1): 1.1})
    assert flat.seconds("unet", pixels=400) == pytest.approx(2.2)  # never below the share
    odd = table({(100, 1): 2.0, (200, 1): 1.0})
    assert odd.seconds("unet", pixels=50) == pytest.approx(2.0)  # never dearer than the smallest


def test_old_sizes_are_forgotten() -> None:
    costs = table({(64 * i, 1): float(i) for i in range(1, 101)})
    assert len(costs.known()["unet"]) == 64
    assert (64, 1) not in costs.known()["unet"]


def test_an_engine_measures_its_networks(manual: Engine, ask: object) -> None:
    assert manual.costs.known() == {}
    assert callable(ask)
    result = manual.inpaint(ask(samples=2, guidance_scale=3.0, region="full"))
    known = manual.costs.known()
    assert set(known) == {"text_encoder", "unet", "vae_encoder", "vae_decoder", "rest"}
    pixels = int(np.prod(result.working_size))
    assert set(known["unet"]) == {(pixels, 4)}
    assert set(known["vae_encoder"]) == set(known["vae_decoder"]) == {(pixels, 1)}
    assert set(known["text_encoder"]) == {(1, 1)}
    assert set(known["rest"]) == {(96 * 128, 2)}
    assert all(seconds > 0 for found in known.values() for seconds in found.values())
