"""The same tiny checkpoint in diffusers and in the engine, for tests of whole pipelines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import Engine, InpaintRequest
from engine.schedulers import DIFFUSERS_CLASSES, diffusers_options

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from export import export_checkpoint  # noqa: E402
from tests.export.checkpoints import make_checkpoint  # noqa: E402

LATENT_TOLERANCE = 2e-3
"""Rounding of float32 sums made in another order, over up to 10 UNet calls, of latents up to 94;
seen: 1.05e-3."""

PICTURE_TOLERANCE = 1
"""Levels of 255: two values on either side of a rounding threshold."""

STEPS, SIZE = 5, 64


def inpainting(plain: Any) -> Any:
    """diffusers' pipeline for inpainting with the parts of any other."""
    parts = plain.components
    if "text_encoder_2" in parts:
        zeros = plain.config.force_zeros_for_empty_prompt
        return diffusers.StableDiffusionXLInpaintPipeline(
            **parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
    without = {"image_encoder": None, "feature_extractor": None, "safety_checker": None}
    return diffusers.StableDiffusionInpaintPipeline(
        **parts | without, requires_safety_checker=False
    )


class Pair:
    """The same checkpoint twice: diffusers' pipeline for inpainting and our engine."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        source = make_checkpoint(folder / "checkpoint", **settings)
        self.engine = Engine.open(export_checkpoint(source, folder / "bundle").path, threads=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipe = inpainting(diffusers.DiffusionPipeline.from_pretrained(source))
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
                negative_prompt=request.negative_prompt or None,
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
    assert result.latents is not None
    worst = float(np.abs(result.latents - latents).max())
    assert worst <= LATENT_TOLERANCE, f"latents differ by {worst}"
    levels = int(np.abs(result.images[0].astype(int) - picture).max())
    assert levels <= PICTURE_TOLERANCE, f"pictures differ by {levels} of 255"
