"""The engine as its users see it: pictures in, pictures out, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import (
    Engine,
    InputError,
)
from engine.schedulers import SCHEDULERS

Picture = npt.NDArray[np.uint8]


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


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_strength_never_makes_zero_steps_but_zero_changes_nothing(
    engine: Engine, ask: Any, picture: Picture, scheduler: str
) -> None:
    assert engine.inpaint(ask(strength=0.01, scheduler=scheduler)).steps_run >= 1
    result = engine.inpaint(ask(strength=0.0, samples=2, scheduler=scheduler))
    assert result.steps_run == 0
    assert result.latents is None
    assert np.array_equal(result.images[1], picture)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_empty_mask_changes_nothing(
    engine: Engine, ask: Any, picture: Picture, scheduler: str
) -> None:
    result = engine.inpaint(ask(mask=np.zeros((10, 10), np.uint8), scheduler=scheduler))
    assert np.array_equal(result.images[0], picture)
    assert result.steps_run == 0


def test_what_is_changed_after_submitting_does_not_matter(
    manual: Engine, ask: Any, picture: Picture, hole: Picture
) -> None:
    expected = manual.inpaint(ask()).images
    ticket = manual.submit(ask())
    picture[:] = 0
    hole[:] = 255
    while manual.step():
        pass
    assert np.array_equal(ticket.result().images, expected)


def test_samples_of_the_reference_are_single_pictures(engine: Engine, ask: Any) -> None:
    together = engine.inpaint(ask(reference=True, samples=2, strength=0.7)).images
    second = engine.inpaint(ask(reference=True, seed=2, strength=0.7)).images[0]
    assert np.abs(together[1].astype(int) - second).max() <= 1


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
