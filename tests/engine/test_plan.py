"""The policy of deadlines, with costs that are made up: every way, every budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from engine import DeadlineMissed
from engine.plan import SHARES, Rung, Vae, choose, fewest_steps, ladder, quickest

ASKED = (1, 2, 3, 5, 8, 25)
BOTH: tuple[Vae, ...] = ("full", "fast")


def rungs_of(asked: int, *, vaes: tuple[Vae, ...] = ("full",), floor: int = 4) -> list[Rung]:
    fewest = min(asked, floor)
    return list(ladder(asked=asked, fewest=fewest, shares=SHARES, vaes=vaes))


def cost(step: float, decode: float, fast: float) -> Callable[[Rung], float]:
    """Seconds by pixels; what does not depend on the plan is 1."""

    def seconds(rung: Rung) -> float:
        area = rung.share**2
        return 1 + area * (rung.steps * step + (decode if rung.vae == "full" else fast))

    return seconds


COSTS = [cost(*values) for values in itertools.product((0.1, 1.0), (0.1, 2.0), (0.05, 3.0))]


def planned(rungs: list[Rung], seconds: Callable[[Rung], float], left: float) -> Rung | None:
    try:
        return choose(rungs, seconds=seconds, left=left, margin=1.2)[0]
    except DeadlineMissed:
        return None


@pytest.mark.parametrize("vaes", [BOTH, BOTH[:1]])
@pytest.mark.parametrize("asked", ASKED)
def test_every_way_once_and_none_beyond_what_was_asked(asked: int, vaes: tuple[Vae, ...]) -> None:
    rungs = rungs_of(asked, vaes=vaes)
    assert rungs[0] == Rung(steps=asked)
    counts = range(min(asked, 4), asked + 1)
    everything = {
        Rung(steps=steps, share=share, vae=vae)
        for steps, share, vae in itertools.product(counts, SHARES, vaes)
    }
    assert set(rungs) == everything
    assert len(rungs) == len(everything)


def test_the_order_of_what_is_given_up() -> None:
    names = [(r.steps, r.share, r.vae) for r in rungs_of(8, vaes=BOTH, floor=3)]
    whole = [(n, 1.0, vae) for vae in BOTH for n in (8, 7, 6, 5, 4)]
    whole += [(3, 1.0, "full"), (3, 1.0, "fast")]
    assert names[: len(whole)] == whole
    assert names[len(whole)] == (8, 0.75, "full")
    assert names[-1] == (3, 0.5, "fast")


@pytest.mark.parametrize("seconds", COSTS)
@pytest.mark.parametrize("vaes", [BOTH, BOTH[:1]])
@pytest.mark.parametrize("asked", ASKED)
def test_more_time_never_makes_a_plan_worse(
    asked: int, vaes: tuple[Vae, ...], seconds: Callable[[Rung], float]
) -> None:
    rungs = rungs_of(asked, vaes=vaes)
    budgets = [i / 20 for i in range(1, 800)]
    plans = [planned(rungs, seconds, left) for left in budgets]
    ranks = [len(rungs) if plan is None else rungs.index(plan) for plan in plans]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == len(rungs)
    assert ranks[-1] == 0
    for left, plan in zip(budgets, plans, strict=True):
        if plan is None:
            assert min(map(seconds, rungs)) > left
            continue
        assert seconds(plan) <= left
        assert min(asked, 4) <= plan.steps <= asked
        if seconds(plan) * 1.2 <= left:  # nothing better would have been in time
            assert all(seconds(r) * 1.2 > left for r in rungs[: rungs.index(plan)])
        else:
            assert seconds(plan) == min(map(seconds, rungs))


def test_an_unknown_cost_changes_nothing() -> None:
    rungs = rungs_of(8)
    assert choose(rungs, seconds=lambda rung: None, left=0.001) == (rungs[0], None)


def test_what_cannot_be_done_says_what_it_would_take() -> None:
    text = r"^0\.5 s are left and the quickest way takes about 1\.5 s: the picture cannot be made "
    with pytest.raises(DeadlineMissed, match=text + "before its deadline$"):
        choose(rungs_of(8), seconds=lambda rung: 1.5, left=0.5)
    with pytest.raises(DeadlineMissed, match="takes longer: "):
        choose(rungs_of(8), seconds=lambda rung: float("inf"), left=0.5)


def test_the_quickest() -> None:
    rungs = rungs_of(8, vaes=BOTH)
    assert quickest(rungs, cost(1.0, 0.5, 0.1)) == (Rung(steps=4, share=0.5, vae="fast"), 2.025)
    assert quickest(rungs, lambda rung: float("inf")) == (rungs[-1], None)


def test_the_fewest_steps() -> None:
    assert fewest_steps("ddim", 25) == 4
    assert fewest_steps("ddim", 3) == 3
    assert fewest_steps("lcm", 8) == 1
