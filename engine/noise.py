"""PyTorch's CPU generator in numpy: the same seed gives the same latents as diffusers.

``torch.Generator("cpu")`` is a 32-bit Mersenne Twister (mt19937). ``torch.randn`` takes the low 24
bits of each draw as a uniform number in [0, 1) and turns blocks of 16 into normal ones by the
Box-Muller transform (Box and Muller, 1958), cosines in the first half, sines in the second; fewer
than 16 numbers are drawn one by one from 53-bit uniforms instead.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

_BLOCK: Final = 16


class Generator:
    """A stream of normal numbers equal to that of ``torch.Generator("cpu").manual_seed(seed)``.

    Equal to within float32 rounding of the logarithm and the trigonometric functions (some 1e-7).
    Seeds are taken modulo 2**32, as PyTorch's generator does.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed % 2**32)
        self._spare: float | None = None

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Draw what ``torch.randn(shape, generator=...)`` draws next, in float32."""
        size = math.prod(shape)
        if size < _BLOCK:
            return np.array([self._one() for _ in range(size)], np.float32).reshape(shape)
        out = self._uniform(size)
        whole = size - size % _BLOCK
        _box_muller(out[:whole].reshape(-1, 2, _BLOCK // 2))
        if whole != size:  # the last 16 are drawn anew, overlapping the block before
            out[-_BLOCK:] = self._uniform(_BLOCK)
            _box_muller(out[-_BLOCK:].reshape(-1, 2, _BLOCK // 2))
        return out.reshape(shape)

    def _uniform(self, size: int) -> npt.NDArray[np.float32]:
        draws = self._bits.randint(0, 2**32, size=size, dtype=np.uint32)
        return (draws & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        """One number of a short draw: Box-Muller in double precision, the second one kept."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        words = self._bits.randint(0, 2**32, size=4, dtype=np.uint32).tolist()
        u1, u2 = (((high << 32 | low) % 2**53) / 2**53 for high, low in (words[:2], words[2:]))
        radius, theta = math.sqrt(-2.0 * math.log1p(-u2)), 2.0 * math.pi * u1
        self._spare = radius * math.sin(theta)
        return radius * math.cos(theta)


def _box_muller(blocks: npt.NDArray[np.float32]) -> None:
    """Turn uniform blocks (n, 2, 8) into normal ones in place; ``blocks`` must be a view."""
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    theta = np.float32(2.0 * math.pi) * blocks[:, 1]
    np.multiply(radius, np.cos(theta), out=blocks[:, 0])
    np.multiply(radius, np.sin(theta), out=blocks[:, 1])
