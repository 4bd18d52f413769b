"""The loop, played: the forecast makes the calls that the loop makes."""

from __future__ import annotations

from typing import Any

import pytest

from engine import Engine
from engine.forecast import Share, step_ends


def share(steps: int, *, size: int = 10, rows: int = 1, **more: Any) -> Share:
    return Share(shape_key=size, row_pixels=size, rows=rows, steps=steps, **more)


def ends(mine: Share, *others: Share, waiting: tuple[Share, ...] = (), **more: Any) -> list[float]:
    how = {"unet": lambda pixels, rows: 1.0, "max_pixels": 100, "horizon": 1e9} | more
    return step_ends(mine, running=others, waiting=waiting, **how)


def test_alone_every_step_is_a_call() -> None:
    assert ends(share(4)) == [1, 2, 3, 4]
    assert ends(share(2), unet=lambda pixels, rows: pixels * rows / 20) == [0.5, 1.0]


def test_company_of_its_own_shape_shares_the_calls() -> None:
    assert ends(share(3), share(9), share(9)) == [1, 2, 3]
    cost = ends(share(3), share(2), unet=lambda pixels, rows: rows)
    assert cost == [2, 4, 5]


def test_of_two_shapes_the_one_with_less_left_goes_first() -> None:
    assert ends(share(3), share(9, size=20)) == [1, 2, 3]
    assert ends(share(3), share(1, size=20)) == [2, 3, 4]
    assert ends(share(3), share(2, size=20)) == [1, 2, 3]


def test_what_another_has_waited_counts() -> None:
    assert ends(share(3), share(2, size=20, waited=99)) == [1, 2, 3]
    assert ends(share(3), share(2, size=20, waited=101)) == [3, 4, 5]


def test_with_fewer_steps_to_make_the_first_are_made_earlier() -> None:
    def other() -> Share:
        return share(2, size=20)

    assert ends(share(5), other())[:3] == [3, 4, 5]
    assert ends(share(3), other()) == [1, 2, 3]


def test_the_end_of_another_holds_everybody_up() -> None:
    assert ends(share(2), share(1, after=0.5), share(9, after=7)) == [1.5, 2.5]


def test_who_joins_later_is_prepared_first() -> None:
    assert ends(share(3), waiting=(share(5, before=0.25), share(5, before=0.25))) == [1, 2.25, 3.5]


def test_who_has_nothing_to_do_takes_no_call() -> None:
    assert ends(share(4), waiting=(share(0, size=20, before=0.5),), horizon=50) == [
        1,
        2.5,
        3.5,
        4.5,
    ]


def test_a_step_that_is_too_much_for_a_call_takes_several() -> None:
    assert ends(share(2, rows=4), max_pixels=20) == [2, 4]
    assert ends(share(2, rows=4, rows_done=2), max_pixels=20) == [1, 3]


def test_what_is_beyond_the_horizon_is_left_out() -> None:
    assert ends(share(1000), horizon=3.5) == [1, 2, 3]


@pytest.mark.parametrize("max_pixels", [2 * 128 * 96, 10**9])
def test_the_forecast_makes_the_calls_of_the_loop(
    bundle_path: Any, ask: Any, max_pixels: int
) -> None:
    """Others run and wait; the number of calls until each step of the last is the loop's own."""
    others = [
        ask(region="full", num_inference_steps=6),
        ask(region="full", num_inference_steps=3, samples=3),
        ask(region="mask", num_inference_steps=9, guidance_scale=1.0),
    ]
    with Engine.open(
        bundle_path, threads=1, background=False, max_batch_pixels=max_pixels
    ) as engine:
        for other in others:
            engine.submit(other)
        for _ in range(4):
            engine.step()
        calls = 0
        seen: list[int] = []
        unet = engine._loop._models.unet

        def counted(rows: Any) -> Any:
            nonlocal calls
            calls += 1
            return unet(rows)

        planner = engine._loop._planner
        made = engine._loop._running
        running = [planner._running(r.job, r.waited, r.rows_done) for r in made]
        object.__setattr__(engine._loop._models, "unet", counted)
        ticket = engine.submit(
            ask(region="full", num_inference_steps=5),
            on_step=lambda step, total, preview: seen.append(calls),
        )
        mine = planner._share(engine._loop._submitted[-1].draft)
        for each in (mine, *running):
            each.before = each.after = 0.0
        expected = ends(mine, *running, max_pixels=max_pixels)
        while not ticket.done():
            engine.step()
        assert seen == expected
        assert seen != [1, 2, 3, 4, 5]  # it was not alone
