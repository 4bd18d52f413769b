"""The mask: what is repainted (1) and what is kept (0).

From the client's grey picture to a binary mask at the size of the result, and from there to the
latent grid of the networks.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.bundle import VAE_SCALE_FACTOR

THRESHOLD: Final = 128
"""Grey levels from here on are repainted, as diffusers' 0.5 of 255 does."""

Mask = npt.NDArray[np.uint8]


def binarise(grey: npt.NDArray[np.uint8], *, width: int, height: int) -> Mask:
    """Bring a grey mask to (height, width) uint8 of 0 and 1.

    A mask of another size is enlarged by nearest neighbour and reduced by area, where a cell
    counts as soon as any part of it is to be repainted, so that thin strokes survive.
    """
    binary = (grey >= THRESHOLD).astype(np.uint8)
    if binary.shape == (height, width):
        return binary
    return resize(binary, width=width, height=height)


def resize(binary: Mask, *, width: int, height: int) -> Mask:
    """Resize a binary mask so that whatever it covers stays covered."""
    if binary.shape == (height, width):
        return binary
    if binary.shape[0] <= height and binary.shape[1] <= width:
        larger = cv2.resize(binary, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(larger, np.uint8)
    cover = cv2.resize(binary.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (cover > 1e-4).astype(np.uint8)


def bounding_box(binary: Mask) -> tuple[int, int, int, int] | None:
    """The box (x0, y0, x1, y1), ends exclusive, round the repainted part; None where empty."""
    x, y, width, height = cv2.boundingRect(binary)
    if width == 0 or height == 0:
        return None
    return x, y, x + width, y + height


def to_latents(binary: Mask) -> npt.NDArray[np.float32]:
    """(H, W) to (1, 1, H // 8, W // 8): 1 where any pixel of the 8x8 cell is repainted."""
    f = VAE_SCALE_FACTOR
    height, width = binary.shape
    cells = binary.reshape(height // f, f, width // f, f).max(axis=(1, 3))
    return np.asarray(cells[None, None], np.float32)


def to_latents_nearest(binary: Mask) -> npt.NDArray[np.float32]:
    """The same by the cell's first pixel, as diffusers does it; strokes may vanish."""
    f = VAE_SCALE_FACTOR
    return np.ascontiguousarray(binary[::f, ::f], dtype=np.float32)[None, None]
