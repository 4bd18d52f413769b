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

from engine.mask import Mask, bounding_box
from engine.scratch import Scratch

Rgb = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float32]

_RING: Final = 12.0
"""Standard deviation in pixels of the blur that carries the error inwards."""

_REDUCE: Final = 4
"""The error is smooth: it is worked out on a grid that much coarser."""

_REACH: Final = 56
"""No error further than that many pixels from the hole is felt in it: the blur ends after four
standard deviations, and two coarse cells are for the way to the coarse grid and back."""


def paste(
    target: Rgb,
    generated: Levels,
    mask: Mask,
    box: tuple[int, int, int, int],
    scratch: Scratch | None = None,
) -> None:
    """Fill the hole of a picture in place; where the mask is 0, it stays as it is.

    Args:
        target: (H, W, 3) uint8 RGB, the original.
        generated: (h, w, 3) float32 levels of RGB from 0 to 255, what the networks made of the box.
        mask: (H, W) uint8, 1 where the picture is repainted.
        box: (x0, y0, x1, y1) of the generated part in the original.
        scratch: Memory to work in.
    """
    scratch = scratch or Scratch()
    x0, y0, x1, y1 = box
    part, hole = target[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    bounds = bounding_box(hole)
    if bounds is None:
        return
    left, top, right, bottom = bounds
    inside = np.s_[top:bottom, left:right]
    filled = scratch.levels("filled", (bottom - top, right - left, 3))
    if cv2.countNonZero(hole) != hole.size:
        xs, ys = _near(left, right, hole.shape[1]), _near(top, bottom, hole.shape[0])
        near = np.s_[ys[0] : ys[1], xs[0] : xs[1]]
        error = _border_error(part[near], generated[near], hole[near], scratch)
        error = error[top - ys[0] : bottom - ys[0], left - xs[0] : right - xs[0]]
        # rounds to the nearest, and takes what is below 0 for 0 and what is above 255 for 255
        cv2.add(generated[inside], error, dst=filled, dtype=cv2.CV_8U)
    else:
        cv2.convertScaleAbs(generated[inside], dst=filled)
    cv2.copyTo(filled, hole[inside], part[inside])


def _near(start: int, end: int, limit: int) -> tuple[int, int]:
    """A span and what can be felt in it, of whole coarse cells where there is room for them."""
    first, last = max(start - _REACH, 0), min(end + _REACH, limit)
    last = min(last + (first - last) % _REDUCE, limit)
    return max(first - (first - last) % _REDUCE, 0), last


def _border_error(original: Rgb, generated: Levels, hole: Mask, scratch: Scratch) -> Levels:
    """What the generated levels lack, (h, w, 3), known outside the hole and extrapolated inwards
    by normalised convolution (Knutsson and Westin, 1993)."""
    height, width = hole.shape
    coarse = (max(1, width // _REDUCE), max(1, height // _REDUCE))
    outside = hole ^ 1
    known = scratch.floats("known", hole.shape)
    np.copyto(known, outside)
    lacking, error = (scratch.floats(use, original.shape) for use in ("lacking", "error"))
    np.copyto(lacking, original)
    lacking -= generated
    error.fill(0.0)
    cv2.copyTo(lacking, outside, error)
    weighted = cv2.resize(error, coarse, interpolation=cv2.INTER_AREA)
    weight = cv2.resize(known, coarse, interpolation=cv2.INTER_AREA)
    sigma = _RING / _REDUCE
    weighted = cv2.GaussianBlur(weighted, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # at a straight border the weight is one half: the whole error counts there, less inside
    offset = weighted / np.maximum(weight, 0.5)[..., None]
    cv2.resize(offset, (width, height), dst=error, interpolation=cv2.INTER_LINEAR)
    return error
