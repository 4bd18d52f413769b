"""What a UNet without inpainting channels works with beside its latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blend:
    """What a UNet without inpainting channels needs: the known part is put back at every step.

    ``mask`` and ``kept``, which is 1 - mask, are (1, 1, h, w); ``clean`` and ``noise`` are
    (S, C, h, w).
    """

    mask: Floats
    kept: Floats
    clean: Floats
    noise: Floats
