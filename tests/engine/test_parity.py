"""Reference mode is diffusers to the last step: whole pipelines, from the seed to the picture.

Tiny random checkpoints go through the exporter; the seed alone must give the same picture. No
latents are handed over.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, InpaintRequest, InputError
from engine.schedulers import DIFFUSERS_CLASSES, SCHEDULERS, diffusers_options

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from export import export_checkpoint  # noqa: E402
from tests.export.checkpoints import make_checkpoint  # noqa: E402

pytestmark = pytest.mark.export

LATENT_TOLERANCE = 1e-3
"""Rounding of float32 sums made in another order, over up to 6 UNet calls; seen: 4e-4."""

PICTURE_TOLERANCE = 1
"""Levels of 255: two values on either side of a rounding threshold."""

STRENGTHS, GUIDANCES, STEPS, SIZE = (1.0, 0.7, 0.35), (1.0, 5.0), 5, 64

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "9-channel KL": {"unet_channels": 9, "vae": "kl"},
    "9-channel tiny VAE": {"unet_channels": 9, "vae": "tiny"},
    "4-channel KL": {"unet_channels": 4, "vae": "kl"},
}


class Pair:
    """The same checkpoint twice: diffusers' pipeline and our engine."""

    def __init__(self, folder: Path, name: str) -> None:
        source = make_checkpoint(folder / "checkpoint", **CHECKPOINTS[name])
        self.engine = Engine.open(export_checkpoint(source, folder / "bundle").path, threads=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = diffusers.DiffusionPipeline.from_pretrained(source, safety_checker=None)
            parts = plain.components | {"image_encoder": None, "feature_extractor": None}
            self.pipe = diffusers.StableDiffusionInpaintPipeline(
                **parts, requires_safety_checker=False
            )
        self.pipe.set_progress_bar_config(disable=True)
        self.config = dict(self.pipe.scheduler.config)

    def diffusers_picture(
        self, request: InpaintRequest
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """The picture and the final latents of diffusers for the same request."""
        from PIL import Image

        assert request.scheduler is not None
        extra = diffusers_options(request.scheduler)
        kind = getattr(diffusers, DIFFUSERS_CLASSES[request.scheduler])
        latents: list[Any] = []

        def keep(pipe: object, step: int, timestep: object, kept: dict[str, Any]) -> dict[str, Any]:
            latents.append(kept["latents"])
            return {}

        assert request.seed is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipe.scheduler = kind.from_config(self.config, **extra)
            images = self.pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                image=Image.fromarray(request.image),
                mask_image=Image.fromarray(request.mask),
                height=request.image.shape[0],
                width=request.image.shape[1],
                strength=request.strength,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                callback_on_step_end=keep,
                output_type="pil",
            ).images
        return np.asarray(images[0]), latents[-1].numpy()


@pytest.fixture(scope="module", params=CHECKPOINTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("parity"), request.param)
    yield made
    made.engine.close()


def make_request(width: int = SIZE, height: int = SIZE, **changes: Any) -> InpaintRequest:
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 3, y * 3, (x + y) * 2], -1) + rng.integers(0, 30, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = 255
    values: dict[str, Any] = {
        "image": image.astype(np.uint8),
        "mask": mask,
        "prompt": "a red apple on a table",
        "negative_prompt": "blurry",
        "seed": 1234,
        "num_inference_steps": STEPS,
        "reference": True,
    }
    return InpaintRequest(**(values | changes))


def assert_same(pair: Pair, request: InpaintRequest) -> None:
    picture, latents = pair.diffusers_picture(request)
    result = pair.engine.inpaint(request)
    worst = float(np.abs(result.latents - latents).max())
    assert worst <= LATENT_TOLERANCE, f"latents differ by {worst}"
    levels = int(np.abs(result.images[0].astype(int) - picture).max())
    assert levels <= PICTURE_TOLERANCE, f"pictures differ by {levels} of 255"


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
