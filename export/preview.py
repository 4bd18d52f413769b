"""A linear map from latents to colours, for previews while a picture is being made.

Stable Diffusion's four latent channels hold, to a good first approximation, the colour of each
8x8 cell in another basis. The map is fitted by least squares on pictures that are made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

PICTURES: Final = 24
_SIDE: Final = 128
_CELL: Final = 8


def fit_rgb_factors(
    encode: Callable[[Floats], Floats], *, channels: int, scaling_factor: float
) -> tuple[tuple[float, float, float], ...]:
    """Fit RGB in [-1, 1] as a linear function of the latents that the UNet sees.

    Args:
        encode: (B, 3, H, W) in [-1, 1] -> unscaled latents (B, channels or more, h, w), the mean
            first.
        channels: Latent channels.
        scaling_factor: Of the bundle.

    Returns:
        One row of RGB weights per channel, then the bias.
    """
    rows, colours = [], []
    for picture in pictures():
        latents = encode(picture[None])[0, :channels] * scaling_factor
        rows.append(latents.reshape(channels, -1).T)
        cells = picture.reshape(3, _SIDE // _CELL, _CELL, _SIDE // _CELL, _CELL).mean((2, 4))
        colours.append(cells.reshape(3, -1).T)
    design = np.concatenate(rows).astype(np.float64)
    design = np.concatenate([design, np.ones((len(design), 1))], axis=1)
    target = np.concatenate(colours).astype(np.float64)
    factors = np.linalg.lstsq(design, target, rcond=None)[0]
    return tuple((round(r, 6), round(g, 6), round(b, 6)) for r, g, b in factors.tolist())


def pictures(seed: int = 0) -> Floats:
    """Smooth coloured pictures (PICTURES, 3, 128, 128) in [-1, 1], always the same."""
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, _SIDE), np.linspace(-1, 1, _SIDE), indexing="ij")
    made = [_picture(random, x, y) for _ in range(PICTURES)]
    return np.stack(made).astype(np.float32)


def _picture(random: np.random.Generator, x: Any, y: Any) -> Any:
    """A gradient between two colours with three soft discs of other colours on it."""
    angle = random.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.5 * np.clip(x * np.cos(angle) + y * np.sin(angle), -1, 1)
    first, second = random.uniform(-1, 1, (2, 3, 1, 1))
    picture = first * (1 - ramp) + second * ramp
    for colour in random.uniform(-1, 1, (3, 3, 1, 1)):
        centre_x, centre_y = random.uniform(-0.8, 0.8, 2)
        radius = random.uniform(0.2, 0.6)
        distance = np.hypot(x - centre_x, y - centre_y)
        alpha = 1 / (1 + np.exp((distance - radius) * 20))
        picture = picture * (1 - alpha) + colour * alpha
    return picture
