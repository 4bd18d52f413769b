"""Reference mode is diffusers to the last step: whole pipelines, from the seed to the picture.

Tiny random checkpoints go through the exporter; the seed alone must give the same picture. No
latents are handed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from engine import InputError
from engine.schedulers import SCHEDULERS
from tests.engine.pairs import Pair, assert_same, make_request

pytestmark = pytest.mark.export

STRENGTHS, GUIDANCES = (1.0, 0.7, 0.35), (1.0, 5.0)

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "9-channel KL": {"unet_channels": 9, "vae": "kl"},
    "9-channel tiny VAE": {"unet_channels": 9, "vae": "tiny"},
    "4-channel KL": {"unet_channels": 4, "vae": "kl"},
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("parity"), **CHECKPOINTS[request.param])
    yield made
    made.engine.close()


@pytest.mark.parametrize(
    ("scheduler", "strength", "guidance"),
    list(itertools.product(SCHEDULERS, STRENGTHS, GUIDANCES)),
)
def test_same_seed_same_picture(
    pair: Pair, scheduler: str, strength: float, guidance: float
) -> None:
    assert_same(pair, make_request(scheduler=scheduler, strength=strength, guidance_scale=guidance))


@pytest.mark.parametrize(("width", "height"), [(72, 104), (128, 64), (200, 88)])
def test_odd_sizes(pair: Pair, width: int, height: int) -> None:
    request = make_request(width, height, scheduler="euler_a", guidance_scale=5.0, strength=0.7)
    assert_same(pair, request)


def test_a_strength_that_leaves_no_step_is_refused_as_diffusers_does(pair: Pair) -> None:
    request = make_request(scheduler="ddim", strength=0.1, guidance_scale=1.0)
    with pytest.raises(ValueError, match="which is < 1"):
        pair.diffusers_picture(request)
    with pytest.raises(InputError, match=r"strength: is 0\.1: with 5 steps none is left"):
        pair.engine.inpaint(request)
