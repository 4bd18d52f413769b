"""The loop: requests join and leave at any step, and no picture depends on its company."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
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
    InputError,
    RequestCancelled,
    SessionError,
)
from engine.schedulers import SCHEDULERS

Picture = npt.NDArray[np.uint8]


@pytest.fixture
def manual(bundle_path: Path) -> Iterator[Engine]:
    """An engine whose loop the test drives."""
    with Engine.open(bundle_path, threads=1, background=False) as opened:
        yield opened


@pytest.fixture
def ask(picture: Picture, hole: Picture) -> Any:
    def make(**changes: Any) -> InpaintRequest:
        values = {"image": picture, "mask": hole, "prompt": "a red apple", "seed": 1}
        return InpaintRequest(**(values | changes))

    return make


def test_a_picture_is_filled(engine: Engine, ask: Any, picture: Picture, hole: Picture) -> None:
    result = engine.inpaint(ask())
    assert result.images.shape == (1, 96, 128, 3)
    assert result.images.dtype == np.uint8
    assert np.array_equal(result.images[0][hole < 128], picture[hole < 128])
    assert (result.images[0][hole >= 128] != picture[hole >= 128]).mean() > 0.9
    assert (result.scheduler, result.num_inference_steps, result.steps_run) == ("ddim", 4, 4)
    assert result.seed == 1
    stages = result.timings
    assert stages.total >= stages.unet > 0
    assert stages.vae_encoder > 0
    assert stages.vae_decoder > 0


def test_the_same_seed_gives_the_same_bytes(engine: Engine, ask: Any) -> None:
    first, second = engine.inpaint(ask()), engine.inpaint(ask())
    assert np.array_equal(first.images, second.images)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"prompt": "a blue dog"},
        {"negative_prompt": "bad"},
        {"guidance_scale": 1.0},
        {"num_inference_steps": 6},
        {"scheduler": "euler_a"},
        {"strength": 0.5},
        {"region": "full"},
    ],
)
def test_everything_that_is_asked_for_matters(
    engine: Engine, ask: Any, changes: dict[str, Any]
) -> None:
    assert not np.array_equal(engine.inpaint(ask()).images, engine.inpaint(ask(**changes)).images)


def test_a_random_seed_is_told_and_repeats(engine: Engine, ask: Any) -> None:
    first = engine.inpaint(ask(seed=None))
    assert np.array_equal(engine.inpaint(ask(seed=first.seed)).images, first.images)


def test_picture_i_is_the_picture_of_seed_plus_i(engine: Engine, ask: Any) -> None:
    together = engine.inpaint(ask(samples=4, seed=10)).images
    assert together.shape[0] == 4
    for i in range(4):
        alone = engine.inpaint(ask(seed=10 + i)).images[0]
        assert np.abs(together[i].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (1024, 64), (333, 777)])
@pytest.mark.parametrize("region", ["auto", "full", "mask"])
def test_any_size(
    engine: Engine, ask: Any, hole: Picture, size: tuple[int, int], region: str
) -> None:
    width, height = size
    result = engine.inpaint(ask(width=width, height=height, region=region))
    assert result.images.shape == (1, height, width, 3)


def test_strength_never_makes_zero_steps_but_zero_changes_nothing(
    engine: Engine, ask: Any, picture: Picture
) -> None:
    assert engine.inpaint(ask(strength=0.01)).steps_run == 1
    result = engine.inpaint(ask(strength=0.0, samples=2))
    assert result.steps_run == 0
    assert np.array_equal(result.images[1], picture)


def test_an_empty_mask_changes_nothing(engine: Engine, ask: Any, picture: Picture) -> None:
    result = engine.inpaint(ask(mask=np.zeros((10, 10), np.uint8)))
    assert np.array_equal(result.images[0], picture)
    assert result.steps_run == 0


def test_a_large_picture_keeps_its_size(engine: Engine, ask: Any) -> None:
    large = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    mask = np.zeros((3000, 4000), np.uint8)
    mask[1000:1200, 2000:2300] = 255
    result = engine.inpaint(ask(image=large, mask=mask))
    assert result.images.shape == (1, 3000, 4000, 3)
    assert max(result.working_size) <= 128
    assert np.array_equal(result.images[0][mask == 0], large[mask == 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "magic"}, "scheduler: is 'magic'; allowed: ddim"),
        ({"num_inference_steps": 60, "scheduler": "lcm"}, "lcm allows 1 to 50"),
        ({"image": np.zeros((40, 200, 3), np.uint8)}, "height: of the picture is 40"),
        (
            {"image": np.zeros((64, 1032, 3), np.uint8), "region": "full"},
            "region: full cannot work on a width of 1032",
        ),
        ({"image": np.zeros((100, 100, 3), np.uint8), "reference": True}, "reference: needs"),
    ],
)
def test_what_does_not_fit_the_bundle(
    engine: Engine, ask: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.inpaint(ask(**changes))


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
        alone = [engine.inpaint(one).images for one in requests]
        pauses = random.Random(9)
        tickets = []
        for one in requests:
            tickets.append(engine.submit(one))
            time.sleep(pauses.random() * 0.004)
        for ticket, expected in zip(tickets, alone, strict=True):
            got = ticket.result(timeout=60).images
            assert np.abs(got.astype(int) - expected).max() <= 1


def test_rows_of_all_jobs_share_one_call(manual: Engine, ask: Any) -> None:
    """Seen from inside: the calls carry everybody's rows, each at its own timestep."""
    calls: list[list[float]] = []
    real = manual._models.unet

    def spy(rows: Any) -> Any:
        calls.append([row.timestep for row in rows])
        return real(rows)

    object.__setattr__(manual._models, "unet", spy)
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
        real = engine._models.unet

        def spy(rows: Any) -> Any:
            calls.append(len(rows))
            return real(rows)

        object.__setattr__(engine._models, "unet", spy)
        split = engine.inpaint(ask(samples=4, region="full", num_inference_steps=1))
        assert calls == [3, 3, 2]
    with Engine.open(bundle_path, threads=1) as engine:
        whole = engine.inpaint(ask(samples=4, region="full", num_inference_steps=1))
    assert np.abs(split.images.astype(int) - whole.images).max() <= 1


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


def test_steps_and_previews_are_reported(engine: Engine, ask: Any) -> None:
    seen: list[tuple[int, int, Picture]] = []
    ticket = engine.submit(ask(num_inference_steps=20))
    ticket.on_step(lambda step, total, preview: seen.append((step, total, preview())))
    ticket.result()
    assert seen[-1][:2] == (20, 20)
    assert [step for step, _, _ in seen] == list(range(seen[0][0], 21))
    assert seen[-1][2].dtype == np.uint8
    assert seen[-1][2].ndim == 3


def test_a_callback_that_fails_harms_nobody(
    engine: Engine, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ticket = engine.submit(ask(num_inference_steps=20))
    ticket.on_step(lambda step, total, preview: 1 / 0)  # type: ignore[arg-type,return-value]
    ticket.add_done_callback(lambda ticket: 1 / 0)  # type: ignore[arg-type,return-value]
    assert ticket.result().steps_run == 20
    ticket.add_done_callback(lambda ticket: 1 / 0)  # type: ignore[arg-type,return-value]
    assert "callback failed" in caplog.text


def test_done_callback_comes_once(engine: Engine, ask: Any) -> None:
    told = threading.Event()
    ticket = engine.submit(ask())
    ticket.add_done_callback(lambda done: told.set())
    assert told.wait(10)
    late: list[InpaintResult] = []
    ticket.add_done_callback(lambda done: late.append(done.result()))
    assert len(late) == 1


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


def test_waiting_has_a_limit(manual: Engine, ask: Any) -> None:
    ticket = manual.submit(ask())
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        ticket.result(timeout=0.01)
    while manual.step():
        pass
    assert ticket.result().images.size


def test_a_failing_network_fails_only_those_inside(manual: Engine, ask: Any) -> None:
    bad, good = manual.submit(ask(prompt="a cat")), None
    real = manual._models.unet

    def broken(rows: Any) -> Any:
        raise ZeroDivisionError("inside the network")

    object.__setattr__(manual._models, "unet", broken)
    manual.step()
    object.__setattr__(manual._models, "unet", real)
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
