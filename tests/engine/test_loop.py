"""The loop: requests join and leave at any step, and no picture depends on its company."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import (
    Engine,
    EngineError,
    InpaintRequest,
    InpaintResult,
    RequestCancelled,
    SessionError,
)
from engine.batcher import AGEING
from engine.schedulers import SCHEDULERS

Picture = npt.NDArray[np.uint8]


def mixed_requests(ask: Any) -> list[InpaintRequest]:
    rng = random.Random(4)
    return [
        ask(
            prompt=rng.choice(["a red apple", "the blue sky", "a bad cat", ""]),
            negative_prompt=rng.choice(["", "bad"]),
            num_inference_steps=rng.choice([1, 4, 8, 20]),
            scheduler=SCHEDULERS[i % len(SCHEDULERS)],
            guidance_scale=rng.choice([1.0, 3.0, 7.5]),
            strength=rng.choice([1.0, 0.6]),
            samples=rng.choice([1, 2]),
            region=rng.choice(["full", "mask"]),
            seed=i,
        )
        for i in range(12)
    ]


@pytest.mark.parametrize("bundle", ["bundle_path", "plain_bundle_path"])
def test_the_picture_does_not_depend_on_the_company(
    request: pytest.FixtureRequest, ask: Any, bundle: str
) -> None:
    """The law of batching: twelve mixed requests at random moments equal twelve single runs."""
    with Engine.open(request.getfixturevalue(bundle), threads=1) as engine:
        requests = mixed_requests(ask)
        company: list[int] = []
        real = engine._loop._run

        def spy(batch: Any) -> None:
            company.append(len(batch))
            real(batch)

        object.__setattr__(engine._loop, "_run", spy)
        alone = [engine.inpaint(one).images for one in requests]
        pauses = random.Random(9)
        tickets = []
        for one in requests:
            tickets.append(engine.submit(one))
            time.sleep(pauses.random() * 0.002)
        for ticket, expected in zip(tickets, alone, strict=True):
            got = ticket.result(timeout=60).images
            assert np.abs(got.astype(int) - expected).max() <= 1
        assert max(company) >= 2, "nobody had company, so nothing was tested"


def test_rows_of_all_jobs_share_one_call(manual: Engine, ask: Any) -> None:
    """Seen from inside: the calls carry everybody's rows, each at its own timestep."""
    calls: list[list[float]] = []
    real = manual._loop._models.unet

    def spy(rows: Any) -> Any:
        calls.append([row.timestep for row in rows])
        return real(rows)

    object.__setattr__(manual._loop._models, "unet", spy)
    long = manual.submit(ask(num_inference_steps=5, guidance_scale=1.0))
    manual.step()
    manual.step()
    short = manual.submit(ask(num_inference_steps=2, guidance_scale=4.0))
    while manual.step():
        pass
    assert [len(call) for call in calls] == [1, 1, 3, 3, 1]
    assert len(set(calls[2])) == 2  # two timesteps in one call
    assert long.done()
    assert short.done()


def test_a_job_too_large_for_one_call_is_split(bundle_path: Path, ask: Any) -> None:
    with Engine.open(bundle_path, threads=1, max_batch_pixels=3 * 96 * 128) as engine:
        calls: list[int] = []
        real = engine._loop._models.unet

        def spy(rows: Any) -> Any:
            calls.append(len(rows))
            return real(rows)

        object.__setattr__(engine._loop._models, "unet", spy)
        split = engine.inpaint(ask(samples=4, region="full", num_inference_steps=1))
        assert calls == [3, 3, 2]
    with Engine.open(bundle_path, threads=1) as engine:
        whole = engine.inpaint(ask(samples=4, region="full", num_inference_steps=1))
    assert np.abs(split.images.astype(int) - whole.images).max() <= 1


def test_a_small_request_does_not_wait_for_a_large_one(bundle_path: Path, ask: Any) -> None:
    """A heavy step is made in parts, and what was done for each is counted."""
    with Engine.open(bundle_path, threads=1, background=False, max_batch_pixels=128**2) as engine:
        heavy = engine.submit(
            ask(width=512, height=512, region="full", samples=4, num_inference_steps=50)
        )
        for _ in range(20):
            engine.step()
        light = engine.submit(ask(num_inference_steps=8))
        rounds = 0
        while not light.done():
            engine.step()
            rounds += 1
        assert rounds <= 20  # 8 steps of its own, and few parts of the other
        assert not heavy.done()
        heavy.cancel()


def test_a_short_request_does_not_wait_for_a_long_one(manual: Engine, ask: Any) -> None:
    long = manual.submit(ask(num_inference_steps=50))
    for _ in range(10):
        manual.step()
    short = manual.submit(ask(num_inference_steps=4))
    for _ in range(4):
        manual.step()
    assert short.done()
    assert not long.done()
    while manual.step():
        pass
    assert long.result().steps_run == 50


def test_short_requests_hold_a_long_one_up_no_longer_than_is_said(
    bundle_path: Path, ask: Any
) -> None:
    """A stream of them that takes all there is, where a call carries one picture."""
    one = {"region": "full", "guidance_scale": 1.0}
    with Engine.open(bundle_path, threads=1, background=False, max_batch_pixels=128 * 96) as engine:
        long = engine.submit(ask(num_inference_steps=10, **one))
        short = engine.submit(ask(num_inference_steps=2, **one))
        passed = 0
        while not long.done() and passed < 200:
            engine.step()
            if short.done():
                passed += 1
                short = engine.submit(ask(num_inference_steps=2, **one))
        assert 30 <= passed <= 10 / AGEING / 2


def test_steps_and_previews_are_reported(engine: Engine, ask: Any) -> None:
    seen: list[tuple[int, int, Picture]] = []
    ticket = engine.submit(
        ask(num_inference_steps=20),
        on_step=lambda step, total, preview: seen.append((step, total, preview())),
    )
    ticket.result()
    assert [(step, total) for step, total, _ in seen] == [(i, 20) for i in range(1, 21)]
    assert seen[-1][2].dtype == np.uint8
    assert seen[-1][2].ndim == 3


def test_a_callback_that_fails_harms_nobody(
    engine: Engine, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(step: int, total: int, preview: object) -> None:
        raise SystemExit

    ticket = engine.submit(ask(num_inference_steps=20), on_step=leave)
    ticket.add_done_callback(lambda ticket: 1 / 0)  # type: ignore[arg-type,return-value]
    assert ticket.result().steps_run == 20
    assert "a callback failed" in caplog.text


def test_done_callback_comes_once(engine: Engine, ask: Any) -> None:
    told = threading.Event()
    ticket = engine.submit(ask())
    ticket.add_done_callback(lambda done: told.set())
    assert told.wait(10)
    late: list[InpaintResult] = []
    ticket.add_done_callback(lambda done: late.append(done.result()))
    assert len(late) == 1


def test_a_callback_cannot_wait_for_a_result(engine: Engine, ask: Any) -> None:
    seen: list[Exception] = []
    other = engine.submit(ask(num_inference_steps=100))

    def wait(step: int, total: int, preview: object) -> None:
        try:
            other.result()
        except EngineError as exc:
            seen.append(exc)

    engine.submit(ask(num_inference_steps=2), on_step=wait).result(timeout=10)
    assert "wait for ever" in str(seen[0])
    assert other.result(timeout=30).steps_run == 100


def test_cancelling_stops_between_steps(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask(num_inference_steps=50))
    steps: list[int] = []
    ticket.on_step(lambda step, total, preview: steps.append(step))
    manual.step()
    manual.step()
    assert ticket.cancel()
    assert not manual.step()
    assert steps == [1, 2]
    with pytest.raises(RequestCancelled):
        ticket.result()
    assert not ticket.cancel()


def test_cancelling_before_the_start(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask())
    assert ticket.cancel()
    assert not manual.step()
    with pytest.raises(RequestCancelled):
        ticket.result()


def test_cancelled_requests_hold_up_nobody(manual: Engine, ask: Any) -> None:
    cancelled = [manual.submit(ask(num_inference_steps=50)) for _ in range(40)]
    manual.step()
    for ticket in cancelled:
        assert ticket.cancel()
    live = manual.submit(ask(num_inference_steps=1))
    manual.step()
    assert live.done()
    assert all(ticket.done() for ticket in cancelled)


def test_waiting_for_a_picture_has_a_limit(manual: Engine, ask: Any) -> None:
    with pytest.raises(TimeoutError):
        manual.inpaint(ask(num_inference_steps=200), timeout=0.001)
    assert not manual.step()  # it was cancelled


def test_values_that_are_no_numbers_make_no_picture(manual: Engine, ask: Any) -> None:
    real = manual._loop._models.unet
    object.__setattr__(manual._loop._models, "unet", lambda rows: real(rows) * np.float32("nan"))
    with pytest.raises(SessionError, match="not numbers"):
        manual.inpaint(ask())


def test_stepping_an_engine_that_runs_by_itself(engine: Engine) -> None:
    with pytest.raises(EngineError, match="background=False"):
        engine.step()


def test_two_threads_may_drive_one_engine(manual: Engine, ask: Any) -> None:
    alone = [manual.inpaint(ask(seed=i)).images for i in range(4)]
    got: dict[int, Picture] = {}

    def work(seed: int) -> None:
        got[seed] = manual.inpaint(ask(seed=seed)).images

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for seed, expected in enumerate(alone):
        assert np.abs(got[seed].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("background", [True, False])
def test_closing_from_a_callback(bundle_path: Path, ask: Any, background: bool) -> None:
    engine = Engine.open(bundle_path, threads=1, background=background)
    other = engine.submit(ask(num_inference_steps=200))
    first = engine.submit(
        ask(num_inference_steps=3), on_step=lambda step, total, preview: engine.close()
    )
    while not background and engine.step():
        pass
    for ticket in (first, other):
        with pytest.raises(RequestCancelled):
            ticket.result(timeout=10)
    engine.close()


def test_waiting_for_oneself_is_refused(engine: Engine, ask: Any) -> None:
    seen: list[Exception] = []

    def ask_again(step: int, total: int, preview: object) -> None:
        try:
            engine.inpaint(ask())
        except EngineError as exc:
            seen.append(exc)

    engine.submit(ask(), on_step=ask_again).result(timeout=10)
    assert "from a callback" in str(seen[0])


def test_waiting_has_a_limit(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask())
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        ticket.result(timeout=0.01)
    while manual.step():
        pass
    assert ticket.result().images.size


def test_a_failing_network_fails_only_those_inside(manual: Engine, ask: Any) -> None:
    bad, good = manual.submit(ask(prompt="a cat")), None
    real = manual._loop._models.unet

    def broken(rows: Any) -> Any:
        raise ZeroDivisionError("inside the network")

    object.__setattr__(manual._loop._models, "unet", broken)
    manual.step()
    object.__setattr__(manual._loop._models, "unet", real)
    with pytest.raises(SessionError, match="inside the network"):
        bad.result()
    good = manual.submit(ask())
    while manual.step():
        pass
    assert good.result().images.size


def test_a_closed_engine(bundle_path: Path, ask: Any) -> None:
    engine = Engine.open(bundle_path, threads=1, background=False)
    pending = engine.submit(ask())
    running = engine.submit(ask(num_inference_steps=50))
    engine.step()
    engine.close()
    engine.close()
    for ticket in (pending, running):
        with pytest.raises(RequestCancelled, match="closed"):
            ticket.result(timeout=1)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(ask())
