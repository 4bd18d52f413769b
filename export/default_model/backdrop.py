"""Backdrops: crops of photographs, plain walls, gradients, noise, and patterns.

For: what lies behind the objects and is to be continued by the empty prompt. Imports numpy and cv2
only; everything random comes from the generator passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Backdrops:
    """Makes backdrops of one size S."""

    def __init__(self, photos: Sequence[Image], size: int) -> None:
        """Keeps the photographs.

        Args:
            photos: (H, W, 3) uint8 pictures, both sides at least `size`.
            size: Width and height of a backdrop, pixels.

        Raises:
            ValueError: If a photograph is too small.
        """
        small = [p.shape for p in photos if min(p.shape[:2]) < size]
        if small:
            raise ValueError(f"photos: {small[0]}; both sides must be {size} pixels or more")
        self.photos = list(photos)
        self.size = size
        yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
        self.yy: Floats = yy
        self.xx: Floats = xx

    def draw(self, rng: np.random.Generator) -> Floats:
        """Makes a background: (S, S, 3) float32 RGB, about 0 to 255."""
        size = self.size
        u = rng.random()
        if u < 0.42:
            return self._photo_crop(rng)
        if u < 0.64:
            return np.broadcast_to(self._colour(rng), (size, size, 3)).copy()
        if u < 0.82:
            angle = rng.uniform(0, 2 * np.pi)
            ramp = (self.xx - size / 2) * np.cos(angle) + (self.yy - size / 2) * np.sin(angle)
            blend = np.clip(ramp / (rng.uniform(0.6, 1.4) * size) + 0.5, 0, 1)
        elif u < 0.92:
            blend = self._noise(rng)
        else:
            blend = self._pattern(rng)
        blend = blend.astype(np.float32)[..., None]
        mixed = self._colour(rng) * blend + self._colour(rng) * (1 - blend)
        return np.asarray(mixed, np.float32)

    def _photo_crop(self, rng: np.random.Generator) -> Floats:
        size = self.size
        photo = self.photos[rng.integers(len(self.photos))]
        height, width = photo.shape[:2]
        side = int(rng.integers(size, min(height, width) + 1))
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = cv2.resize(
            photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA
        )
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return crop.astype(np.float32) * np.float32(rng.uniform(0.85, 1.1))

    def _colour(self, rng: np.random.Generator) -> Floats:
        """A wall colour: (3,) float32; a third of the time nearly grey."""
        if rng.random() < 0.35:
            return (rng.uniform(150, 255) + rng.uniform(-12, 12, 3)).astype(np.float32)
        hsv = np.array([[[rng.integers(180), rng.integers(20, 200), rng.integers(90, 256)]]])
        return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)

    def _noise(self, rng: np.random.Generator) -> Floats:
        """Fractal noise between 0 and 1, (S, S) float32."""
        size = self.size
        total = np.zeros((size, size), np.float32)
        for cells in (3, 6, 12, 24, 48)[: int(rng.integers(2, 6))]:
            octave = rng.standard_normal((cells, cells), np.float32)
            total += cv2.resize(octave, (size, size), interpolation=cv2.INTER_CUBIC) / cells**0.7
        return np.clip(total * 0.78 + 0.5, 0, 1)

    def _pattern(self, rng: np.random.Generator) -> Floats:
        """Floor and wall, stripes, or checks: 0 or 1, (S, S) float32."""
        size = self.size
        if rng.random() < 0.5:
            return (self.yy > rng.uniform(0.45, 0.88) * size).astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.24) * size
        cos, sin = np.cos(angle), np.sin(angle)
        on = np.sin((self.xx * cos + self.yy * sin) * np.pi / period) > 0
        if rng.random() < 0.5:
            on ^= np.sin((self.yy * cos - self.xx * sin) * np.pi / period) > 0
        return on.astype(np.float32)
