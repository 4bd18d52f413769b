"""What the VAE encoder says of the pictures of a request, run only where it is not known yet."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engine.cache import MASKED_PICTURE, PICTURE, ContentCache
from engine.mask import Mask
from engine.models import VaeEncoder, to_nchw

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """The moments of one picture at the working size; see ``VaeEncoder.moments``.

    Attributes:
        pixels: (H, W, 3) uint8.
        hole: (H, W) uint8, 1 where the picture is repainted.
    """

    encoder: VaeEncoder
    cache: ContentCache
    pixels: npt.NDArray[np.uint8]
    hole: Mask

    def whole(self) -> Floats:
        """Of the picture as it is."""
        return self.cache.get(
            PICTURE, (self.pixels,), lambda: self.encoder.moments(to_nchw(self.pixels))
        )

    def masked(self) -> Floats:
        """Of the picture with a blank hole, whatever that hides."""
        known = self.hole ^ 1
        kept = np.asarray(cv2.copyTo(self.pixels, known), np.uint8)  # zeros where it is blank

        def make() -> Floats:
            planes = to_nchw(kept)
            planes *= known
            planes += np.float32(0)  # no minus zeros
            return self.encoder.moments(planes)

        return self.cache.get(MASKED_PICTURE, (kept, self.hole), make)
