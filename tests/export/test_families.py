"""SD 2 and SDXL in reference mode: whole pipelines, from the seed to the picture, as diffusers'."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.engine.pairs import Pair, assert_same, make_request
from tests.export.originals import normal, session

pytestmark = pytest.mark.export

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "SDXL, 9 channels": {"family": "sdxl", "unet_channels": 9},
    "SDXL, 4 channels": {"family": "sdxl", "unet_channels": 4, "seed": 1},
    "SD 2, 9 channels": {"family": "sd2", "unet_channels": 9},
}
SCHEDULERS = ("euler", "euler_a", "ddim", "dpmpp_2m_karras")


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("families"), **CHECKPOINTS[request.param])
    yield made
    made.engine.close()


@pytest.mark.parametrize(
    ("scheduler", "strength", "guidance"),
    list(itertools.product(SCHEDULERS, (1.0, 0.6), (1.0, 5.0))),
)
def test_same_seed_same_picture(
    pair: Pair, scheduler: str, strength: float, guidance: float
) -> None:
    assert_same(pair, make_request(scheduler=scheduler, strength=strength, guidance_scale=guidance))


def test_sizes_that_are_no_squares(pair: Pair) -> None:
    """The sizes that SDXL is told are height before width."""
    assert_same(pair, make_request(72, 120, scheduler="euler", guidance_scale=5.0, strength=0.6))


def test_no_negative_prompt(pair: Pair) -> None:
    """Which is not an empty one: SDXL's embeddings are zeros then."""
    assert_same(pair, make_request(scheduler="euler", guidance_scale=5.0, negative_prompt=""))


def test_the_strength_that_diffusers_takes_for_all(pair: Pair) -> None:
    """Of SDXL, where nothing is said: the first step is left out."""
    assert_same(pair, make_request(scheduler="ddim", guidance_scale=5.0, strength=0.9999))


def test_what_the_bundle_says(pair: Pair) -> None:
    bundle, pipe = pair.engine.bundle, pair.pipe
    two = hasattr(pipe, "text_encoder_2")
    assert bundle.family == ("sdxl" if two else "sd2")
    assert bundle.force_zeros_for_empty_prompt is two
    names = ("text_encoder", "text_encoder_2")
    assert bundle.text_encoders == (names if two else names[:1])
    assert bundle.latents.scaling_factor == pipe.vae.config.scaling_factor
    assert bundle.scheduler["prediction_type"] == pair.config["prediction_type"]
    assert bundle.defaults.scheduler == ("euler" if two else "ddim")
    for component in bundle.components.values():
        assert component.parity is not None
        assert component.parity.psnr_db > 100


def test_the_answer_depends_on_all_that_the_unet_is_told(pair: Pair) -> None:
    """So that a wrong value would be seen in the pictures above."""
    takes = pair.engine.bundle.components["unet"].inputs
    sizes = {"batch": 1, "tokens": 77, "height/8": 8, "width/8": 8}
    inputs = {
        spec.name: normal(i, *(sizes[a] if isinstance(a, str) else a for a in spec.shape))
        for i, spec in enumerate(takes)
    }
    inputs["timestep"] = np.array([500], np.float32)
    if "time_ids" in inputs:
        inputs["time_ids"] = np.array([[64, 64, 0, 0, 64, 64]], np.float32)
    unet = session(pair.engine.bundle, "unet")
    before = unet(**inputs)
    for name, values in inputs.items():
        changed = {**inputs, name: values[..., ::-1].copy() if values.size > 6 else values + 200}
        assert np.abs(unet(**changed) - before).max() > 0.01, name
