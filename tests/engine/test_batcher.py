"""The policy: one shape a call, whoever has the least left first, nobody starves."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from engine.batcher import AGEING, pick


@dataclass(eq=False)
class Fake:
    name: str
    shape_key: str = "64"
    pixels: int = 1
    left: int = 1
    waited: int = 0


def names(jobs: list[Fake]) -> str:
    return "".join(job.name for job in jobs)


def call(running: list[Fake], *, max_pixels: int) -> list[Fake]:
    """One call, as the loop makes it; those who are done leave."""
    chosen = pick(running, max_pixels=max_pixels)
    for job in running:
        if job in chosen:
            job.left -= job.pixels
        else:
            job.waited += sum(other.pixels for other in chosen)
    for job in chosen:
        if not job.left:
            running.remove(job)
    return chosen


def test_all_of_one_shape_go_together() -> None:
    assert names(pick([Fake("a"), Fake("b"), Fake("c")], max_pixels=8)) == "abc"


def test_the_least_left_goes_first_and_those_of_its_shape_with_it() -> None:
    running = [Fake("a", "32", left=7), Fake("b", "64", left=6), Fake("c", "32", left=5)]
    assert names(pick(running, max_pixels=8)) == "ca"


def test_a_call_is_limited_and_smaller_jobs_fill_the_gap() -> None:
    running = [Fake("a", pixels=3), Fake("b", pixels=2), Fake("c", pixels=1)]
    assert names(pick(running, max_pixels=4)) == "ac"


def test_a_job_larger_than_a_call_goes_alone() -> None:
    assert names(pick([Fake("a", pixels=9), Fake("b")], max_pixels=4)) == "a"


def test_nothing_waits() -> None:
    assert pick([], max_pixels=4) == []


def test_a_job_that_was_begun_is_ended_before_its_equal() -> None:
    running = [Fake(name, left=5) for name in "ab"]
    assert "".join(names(call(running, max_pixels=1)) for _ in range(10)) == "aaaaabbbbb"


@pytest.mark.parametrize("shape", ["64", "32"])
def test_newcomers_pass_a_job_no_longer_than_is_said(shape: str) -> None:
    """A stream of short jobs that takes all there is."""
    long = Fake("long", left=25)
    running = [long]
    calls = 0
    while long in running and calls < 1000:
        if not any(job is not long for job in running):
            running.append(Fake("short", shape, left=4))
        call(running, max_pixels=1)
        calls += 1
        assert long.waited <= 25 / AGEING + 4
    assert long.waited > 25 / AGEING - 50  # so long it does wait
    assert calls == long.waited + 25


def test_nobody_starves() -> None:
    """Random jobs of every size and shape, more than the machine can do: each is done once it has
    waited for what was there, and ten times its own size."""
    rng = random.Random(3)
    running: list[Fake] = []
    limits: dict[Fake, float] = {}
    for _ in range(4000):
        if len(running) < 32 and rng.random() < 0.5:
            pixels = rng.choice([1, 2, 4])
            left = pixels * rng.choice([4, 8, 25])
            job = Fake("", shape_key=rng.choice("abc"), pixels=pixels, left=left)
            limits[job] = sum(other.left for other in running) + left / AGEING
            running.append(job)
        call(running, max_pixels=4)
        for job in running:
            assert job.waited <= limits[job] + 32 * 100
    assert max(job.waited / limits[job] for job in limits) > 0.5


def test_the_mean_is_better_than_in_equal_shares() -> None:
    """One at a call, all there from the beginning: the sum of the ends is the least there is."""
    running = [Fake(str(left), left=left) for left in (25, 4, 8)]
    ends: dict[str, int] = {}
    for now in range(1, 38):
        before = list(running)
        call(running, max_pixels=1)
        ends.update((job.name, now) for job in before if job not in running)
    assert ends == {"4": 4, "8": 12, "25": 37}
