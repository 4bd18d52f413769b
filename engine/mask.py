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
    """Bring a grey mask to (height, width) uint8 of 0 and 1, whatever size it comes in."""
    return resize((grey >= THRESHOLD).view(np.uint8), width=width, height=height)


def resize(binary: Mask, *, width: int, height: int) -> Mask:
    """Resize a binary mask so that whatever it covers stays covered.

    Each axis by itself: enlarged by nearest neighbour, reduced so that a cell counts as soon as
    any part of it is to be repainted. So thin strokes survive.
    """
    binary = _resize_rows(binary, height)
    if width == binary.shape[1]:
        return binary
    turned = np.asarray(cv2.transpose(binary), np.uint8)  # whole rows move faster than columns
    return np.asarray(cv2.transpose(_resize_rows(turned, width)), np.uint8)


def _resize_rows(binary: Mask, size: int) -> Mask:
    have = len(binary)
    if size == have:
        return binary
    cells = np.arange(size)
    if size > have:
        return np.asarray(binary[(2 * cells + 1) * have // (2 * size)], np.uint8)
    # cell k covers [k, k + 1) have / size: all its pixels, the ones it shares too
    first, last = cells * have // size, -(-(cells + 1) * have // size) - 1
    covered = np.asarray(binary[first], np.uint8)
    for further in range(1, int((last - first).max()) + 1):
        np.maximum(covered, binary[np.minimum(first + further, last)], out=covered)
    return covered


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
    rows = binary.reshape(height // f, f, width).max(axis=1)
    cells = rows.reshape(height // f, width // f, f).max(axis=2)
    return np.asarray(cells[None, None], np.float32)


def to_latents_nearest(binary: Mask) -> npt.NDArray[np.float32]:
    """The same by the cell's first pixel, as diffusers does it; strokes may vanish."""
    f = VAE_SCALE_FACTOR
    return np.ascontiguousarray(binary[::f, ::f], dtype=np.float32)[None, None]
