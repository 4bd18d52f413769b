"""Pillow's resampling in numpy, bit for bit.

The safety checkers were trained on pictures that Pillow made small. OpenCV's filters see only the
nearest pixels, Pillow's see all that a pixel of the result covers, so that the two give different
pictures and, near a threshold, different answers. This is the algorithm of Pillow's
``libImaging/Resample.c`` for 8 bits per channel: one axis after the other, columns first, in fixed
point with 22 bits, rounded to 8 bits in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Rgb = npt.NDArray[np.uint8]

_PRECISION: Final = 1 << 22
_BLOCK_ROWS: Final = 512
"""Rows whose columns are resampled together; bounds the memory for large pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A weight by distance in pixels of the result, zero from ``support`` on."""

    support: float
    weight: Callable[[float], float]


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


BILINEAR: Final = Filter(support=1.0, weight=_triangle)
BICUBIC: Final = Filter(support=2.0, weight=_cubic)


def resample(
    image: Rgb, kind: Filter, *, width: int, height: int, box: tuple[int, int, int, int]
) -> Rgb:
    """Resize a picture and cut a box out of the result; only the box is computed.

    Args:
        image: (H, W, 3) uint8.
        kind: The filter.
        width: Width of the whole result in pixels.
        height: Height of the whole result in pixels.
        box: (x0, y0, x1, y1) in pixels of the whole result.

    Returns:
        (y1 - y0, x1 - x0, 3) uint8, what ``Image.resize((width, height)).crop(box)`` gives.
    """
    x0, y0, x1, y1 = box
    columns = _taps(kind, image.shape[1], width, x0, x1)
    rows = _taps(kind, image.shape[0], height, y0, y1)
    first, last = rows[0][0], max(start + len(taps) for start, taps in rows)
    blocks = [
        _apply(columns, image[top : min(top + _BLOCK_ROWS, last)].transpose(1, 0, 2))
        for top in range(first, last, _BLOCK_ROWS)
    ]
    narrow = np.concatenate(blocks, axis=1).transpose(1, 0, 2)
    return _apply([(start - first, taps) for start, taps in rows], narrow)


def _taps(
    kind: Filter, size: int, wanted: int, begin: int, end: int
) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """For the pixels from ``begin`` to ``end`` of ``wanted``: the first pixel that each is made of,
    of ``size``, and the weights from there on."""
    scale = size / wanted
    stretch = max(scale, 1.0)
    support = kind.support * stretch
    taps = []
    for i in range(begin, end):
        centre = (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        weights = [kind.weight((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = sum(weights)
        fixed = [math.trunc(w / total * _PRECISION + math.copysign(0.5, w)) for w in weights]
        taps.append((first, np.array(fixed, np.float64)))
    return taps


def _apply(taps: list[tuple[int, npt.NDArray[np.float64]]], rows: Rgb) -> Rgb:
    """Weigh rows, (N, M, 3), into (len(taps), M, 3). Every sum is a whole number below 2**53, so
    that floating point holds it exactly."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    made = np.empty((len(taps), flat.shape[1]), np.uint8)
    for i, (first, weights) in enumerate(taps):
        total = weights @ flat[first : first + len(weights)].astype(np.float64)
        made[i] = np.clip(np.floor(total / _PRECISION + 0.5), 0, 255)
    return made.reshape(len(taps), *rows.shape[1:])
