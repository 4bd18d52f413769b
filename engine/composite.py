"""Paste the generated picture into the hole.

Pixels outside the mask are the original's, bit for bit. The networks redraw those too, and redraw
them a little wrong (the autoencoder shifts colours); just outside the hole that error is known
exactly, so it is carried over the border, fading inwards, and taken off. The hole then meets its
surroundings without a seam, and nothing outside it is touched.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.mask import Mask

Rgb = npt.NDArray[np.uint8]

_RING: Final = 12.0
"""Standard deviation in pixels of the blur that carries the error inwards."""

_REDUCE: Final = 4
"""The error is smooth: it is worked out on a grid that much coarser."""


def paste(original: Rgb, generated: Rgb, mask: Mask, box: tuple[int, int, int, int]) -> Rgb:
    """Fill the hole of a picture.

    Args:
        original: (H, W, 3) uint8 RGB.
        generated: (h, w, 3) uint8 RGB, what the networks made of the box.
        mask: (H, W) uint8, 1 where the picture is repainted.
        box: (x0, y0, x1, y1) of the generated part in the original.

    Returns:
        A new (H, W, 3) uint8 picture, equal to the original wherever the mask is 0.
    """
    x0, y0, x1, y1 = box
    result = original.copy()
    target, hole = result[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    corrected = _match_border(original[y0:y1, x0:x1], generated, hole)
    np.copyto(target, corrected, where=hole[..., None].astype(bool))
    return result


def _match_border(original: Rgb, generated: Rgb, hole: Mask) -> Rgb:
    """Take off the error known outside the hole, extrapolated inwards by normalised convolution
    (Knutsson and Westin, 1993)."""
    if hole.all() or not hole.any():
        return generated
    height, width = hole.shape
    coarse = (max(1, width // _REDUCE), max(1, height // _REDUCE))
    known = 1.0 - hole.astype(np.float32)
    error = np.subtract(original, generated, dtype=np.float32) * known[..., None]
    weighted = cv2.resize(error, coarse, interpolation=cv2.INTER_AREA)
    weight = cv2.resize(known, coarse, interpolation=cv2.INTER_AREA)
    sigma = _RING / _REDUCE
    weighted = cv2.GaussianBlur(weighted, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # at a straight border the weight is one half: the whole error counts there, less inside
    offset = weighted / np.maximum(weight, 0.5)[..., None]
    offset = cv2.resize(offset, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(np.rint(generated + offset), 0, 255), np.uint8)
