"""Deadlines through a whole engine. What a step costs is planted, so that no test has to hurry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine import DeadlineMissed, Engine, InpaintResult, InputError
from engine.planner import TRY_EVERY, Margin
from engine.schedulers import SCHEDULERS, calls_per_step


def plant(engine: Engine, seconds: float, *, pixels: int = 128 * 128, rows: int = 2) -> None:
    """Make the engine believe that a UNet call takes so long, whatever went before."""
    engine._loop._planner._margin = Margin()
    for _ in range(16):
        engine.costs.add("unet", pixels=pixels, rows=rows, seconds=seconds)


@pytest.fixture(scope="module")
def default() -> Iterator[Engine]:
    """The model that ships with Edgefill."""
    with Engine.open(threads=1) as opened:
        yield opened


def same(first: InpaintResult, second: InpaintResult) -> bool:
    return np.array_equal(first.images, second.images)


def test_a_loose_deadline_changes_nothing(default: Engine, ask: Any) -> None:
    alone = default.inpaint(ask())
    assert alone.plan is None
    loose = default.inpaint(ask(deadline=600.0))
    assert same(alone, loose)
    assert loose.plan is not None
    assert (loose.plan.num_inference_steps, loose.plan.reduced) == (8, False)
    assert loose.plan.working_size == loose.working_size == alone.working_size
    assert loose.plan.vae == "full"
    assert loose.plan.estimated is not None


@pytest.mark.parametrize("asked", [None, 12])
def test_a_tight_deadline_takes_steps_first(default: Engine, ask: Any, asked: int | None) -> None:
    plant(default, 1.0)
    result = default.inpaint(ask(num_inference_steps=asked, deadline=6.5))
    assert result.plan is not None
    assert result.plan.reduced
    assert 4 <= result.num_inference_steps == result.plan.num_inference_steps < 7
    assert result.steps_run == result.num_inference_steps
    assert max(result.working_size) == 128
    asked_so = default.inpaint(ask(num_inference_steps=result.num_inference_steps))
    assert same(result, asked_so)  # same seed and plan, same picture


def test_where_steps_do_not_suffice_the_region_shrinks(default: Engine, ask: Any) -> None:
    plant(default, 1.0)
    request = ask(deadline=3.4)
    result = default.inpaint(request)
    assert result.plan is not None
    assert max(result.working_size) < 128
    assert result.working_size == result.plan.working_size
    assert result.images.shape == (1, 96, 128, 3)
    assert np.array_equal(result.images[0][request.mask == 0], request.image[request.mask == 0])


def test_what_cannot_be_in_time_fails_at_once(default: Engine, ask: Any) -> None:
    for share in (64, 96, 128):
        plant(default, 100.0, pixels=share * share)
    steps: list[int] = []
    ticket = default.submit(
        ask(deadline=5.0), on_step=lambda step, total, preview: steps.append(step)
    )
    with pytest.raises(DeadlineMissed, match=r"quickest way takes .* before its deadline$"):
        ticket.result()
    assert steps == []


def test_costs_of_a_bad_moment_are_not_believed_for_ever(manual: Engine, ask: Any) -> None:
    """Nothing runs but what has a deadline, and the table says that nothing can be in time."""
    request = ask(deadline=60.0, region="full", num_inference_steps=4)
    manual.inpaint(request)
    for width, height in ((128, 96), (96, 72), (64, 48)):
        plant(manual, 1000.0, pixels=width * height)
    outcomes = []
    while not outcomes or not outcomes[-1] or len(outcomes) < 2 * TRY_EVERY:
        try:
            outcomes.append(manual.inpaint(request).plan is not None)
        except DeadlineMissed:
            outcomes.append(False)
        assert len(outcomes) < 20 * TRY_EVERY
    tried = outcomes.index(True)
    assert tried == TRY_EVERY - 1
    assert sum(outcomes) >= 2


def test_company_counts(manual: Engine, ask: Any) -> None:
    """A request that would be in time alone gets fewer steps beside another of another shape that
    has less left to do."""
    manual.inpaint(ask(region="full"))
    plant(manual, 1.0, pixels=128 * 96, rows=2)
    plant(manual, 1.0, pixels=128 * 128, rows=2)
    other = manual.submit(ask(num_inference_steps=6, width=128, height=128, region="full"))
    manual.step()
    ticket = manual.submit(ask(region="full", num_inference_steps=8, deadline=13.5))
    while not ticket.done():
        manual.step()
    plan = ticket.result().plan
    assert plan is not None
    assert plan.reduced
    assert plan.num_inference_steps < 8
    assert other.done()


def test_nothing_is_guessed_before_anything_was_measured(manual: Engine, ask: Any) -> None:
    result = manual.inpaint(ask(deadline=60.0))
    assert result.plan is not None
    assert (result.plan.estimated, result.plan.reduced) == (None, False)


def test_what_is_late_is_given_up_between_steps(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask(deadline=0.3, num_inference_steps=50))
    manual.step()
    assert not ticket.done()
    time.sleep(0.3)
    manual.step()
    with pytest.raises(DeadlineMissed, match="was not made before its deadline"):
        ticket.result(0)


def test_what_waited_too_long_is_not_begun(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask(deadline=0.01))
    time.sleep(0.02)
    manual.step()
    with pytest.raises(DeadlineMissed, match="was not begun before its deadline"):
        ticket.result(0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_sampler_can_be_cut_short(
    bundle_path: Any, ask: Any, scheduler: str, strength: float
) -> None:
    with Engine.open(bundle_path, threads=1) as engine:
        how = {"scheduler": scheduler, "strength": strength, "region": "full"}
        asked = engine.inpaint(ask(num_inference_steps=20, **how)).steps_run
        plant(engine, 1.0, pixels=128 * 96)
        left = asked * 0.7 * 1.1 + 1
        result = engine.inpaint(ask(num_inference_steps=20, deadline=left, **how))
        assert result.plan is not None
        assert result.working_size == (128, 96)
        assert result.steps_run < asked
        more = 1 + calls_per_step(scheduler)
        assert result.steps_run * 1.1 <= left < (result.steps_run + more) * 1.1


@pytest.mark.parametrize("value", [0, -1, 3601, float("nan"), "soon", True])
def test_deadlines_that_are_none(ask: Any, value: Any) -> None:
    with pytest.raises(InputError, match="deadline: is"):
        ask(deadline=value)


def test_reference_mode_has_no_deadline(ask: Any) -> None:
    with pytest.raises(InputError, match="deadline: cannot be kept in reference mode"):
        ask(deadline=1.0, reference=True)


def test_the_margin_follows_what_became_of_plans() -> None:
    margin = Margin()
    first = margin.factor
    margin.add(estimated=1.0, taken=9.0)
    assert margin.factor == first
    for taken in (1.0, 1.5) * 16:
        margin.add(estimated=1.0, taken=taken)
    assert margin.factor == 1.5
    for _ in range(32):
        margin.add(estimated=1.0, taken=1.6)
    assert margin.factor == 1.6
    for _ in range(32):
        margin.add(estimated=1.0, taken=0.5)
    assert margin.factor == 1.05
