"""Holes: round an object, or free.

For: masks that tell where something is to be painted, but not what. Pure functions of a random
generator; imports numpy and cv2 only.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


def mask_around(rng: np.random.Generator, alpha: Floats) -> Image:
    """A hole that contains an object but tells only its rough place and size.

    Args:
        rng: Source of randomness.
        alpha: (S, S) float32 coverage of the object.

    Returns:
        (S, S) uint8, 1 in the hole; every pixel with coverage above 0.05 is inside.
    """
    size = alpha.shape[0]
    ys, xs = np.nonzero(alpha > 0.05)
    if len(ys) == 0:
        return free_mask(rng, size)
    y0, y1, x0, x1 = float(ys.min()), float(ys.max() + 1), float(xs.min()), float(xs.max() + 1)
    side = max(y1 - y0, x1 - x0)
    if rng.random() < 0.4:
        # Squarer than the object, so that the hole's aspect does not give the object away.
        grow_y = (side - (y1 - y0)) / 2 * rng.choice([0.5, 1.0])
        grow_x = (side - (x1 - x0)) / 2 * rng.choice([0.5, 1.0])
        y0, y1, x0, x1 = y0 - grow_y, y1 + grow_y, x0 - grow_x, x1 + grow_x
    margin = rng.uniform(0.02, 0.18, 4) * side
    y0, y1, x0, x1 = y0 - margin[0], y1 + margin[1], x0 - margin[2], x1 + margin[3]
    if rng.random() < 0.5:
        mask = np.zeros((size, size), np.uint8)
        top, left = max(0, int(y0)), max(0, int(x0))
        mask[top : int(np.ceil(y1)), left : int(np.ceil(x1))] = 1
        return mask
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
    dy = (yy - (y0 + y1) / 2) / ((y1 - y0) / 2)
    dx = (xx - (x0 + x1) / 2) / ((x1 - x0) / 2)
    power = float(rng.choice([2, 2, 3, 5]))
    radius = (np.abs(dx) ** power + np.abs(dy) ** power) ** (1 / power)
    if rng.random() < 0.6:
        angle = np.arctan2(dy, dx)
        for k in (2, 3, 4, 5):
            wave = np.cos(k * angle + rng.uniform(0, 2 * np.pi))
            radius = radius / (1 + rng.uniform(-0.1, 0.1) * wave)
    needed = radius[alpha > 0.05].max()
    return np.asarray(radius <= needed * 1.02, np.uint8)


def free_mask(rng: np.random.Generator, size: int) -> Image:
    """A hole without an object: a box, an ellipse or a brush stroke, (S, S) uint8."""
    mask = np.zeros((size, size), np.uint8)
    u = rng.random()
    if u < 0.4:
        height, width = rng.integers(size // 6, size * 3 // 5, 2)
        y, x = rng.integers(0, size - height), rng.integers(0, size - width)
        mask[y : y + height, x : x + width] = 1
    elif u < 0.7:
        centre = tuple(int(v) for v in rng.integers(size // 6, size - size // 6, 2))
        axes = tuple(int(v) for v in rng.integers(size // 10, size // 3, 2))
        cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, (1,), -1)
    else:
        point = rng.uniform(0.05 * size, 0.95 * size, 2)
        for _ in range(int(rng.integers(2, 6))):
            end = np.clip(point + rng.uniform(-0.45, 0.45, 2) * size, 0, size - 1)
            width = int(rng.integers(max(2, size // 18), size // 5))
            ends = [tuple(int(v) for v in p) for p in (point, end)]
            cv2.line(mask, ends[0], ends[1], (1,), width)
            point = end
    return mask
